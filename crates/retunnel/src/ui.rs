//! The live view: what the tunnels do now, redrawn a few times a second. Nothing here knows a client;
//! `commands/tunnels/live.rs` connects the two.

pub(crate) mod draw;
pub(crate) mod keys;
pub(crate) mod model;
pub(crate) mod screen;
pub(crate) mod spinner;
pub(crate) mod theme;
