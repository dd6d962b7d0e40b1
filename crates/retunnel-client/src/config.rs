//! Configuration files: the saved token ([`mod@file`]) and tunnel definitions ([`yaml`]).

pub mod file;
pub mod yaml;
