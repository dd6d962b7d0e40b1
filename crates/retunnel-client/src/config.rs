//! Configuration files: the saved token ([`file`]) and tunnel definitions ([`yaml`]).

pub mod file;
pub mod yaml;
