//! Configuration files: the saved token ([`mod@file`]), tunnel definitions ([`yaml`]), and what YAML files have in common
//! ([`document`]).

pub mod document;
pub mod file;
pub mod yaml;
