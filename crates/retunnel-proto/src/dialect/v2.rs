//! The dialect of the published 2.x clients (`docs/protocol.md`, "Dialect 2").
