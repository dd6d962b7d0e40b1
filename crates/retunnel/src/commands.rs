//! One module for each command, and the parts that several commands share.

pub(crate) mod authtoken;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod credits;
#[cfg(feature = "server")]
pub(crate) mod demo;
pub(crate) mod descriptors;
pub(crate) mod diagnose;
pub(crate) mod diagnostics;
pub(crate) mod help;
pub(crate) mod hostname;
pub(crate) mod http;
pub(crate) mod json_events;
pub(crate) mod logging;
pub(crate) mod man;
pub(crate) mod register;
pub(crate) mod reload;
#[cfg(feature = "server")]
pub(crate) mod server;
pub(crate) mod signals;
pub(crate) mod start;
pub(crate) mod tcp;
pub(crate) mod tunnels;
pub(crate) mod unknown;
pub(crate) mod version;
pub(crate) mod watch;
