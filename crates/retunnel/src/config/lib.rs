//! Configuration files of the program `retunnel`: the saved configuration ([`saved`]), the tunnels file ([`tunnels`]), `.env`
//! ([`dotenv`]), and YAML with positions ([`document`]), which the server's file uses too.
//!
//! This is a library so that fuzz targets reach it. It is part of the program and promises no stable API; to embed a client,
//! use `retunnel-client`.

pub mod document;
pub mod dotenv;
pub mod saved;
pub mod text;
pub mod tunnels;

pub use document::{Diagnostic, Diagnostics, Position};
pub use dotenv::Dotenv;
pub use saved::{ConfigError, ConfigFile, RegistrationLock, SavedToken};
pub use tunnels::{TunnelEntry, TunnelsFile};
