//! What carries visitors to clients: an implementation of [`crate::tunnel::upstream`] for each wire. A wire knows how a
//! request and its answer travel, and nothing about visitors' protocols, policy, retries or logs.

pub(crate) mod native;
pub(crate) mod v2;
pub(crate) mod v3;
mod values;
