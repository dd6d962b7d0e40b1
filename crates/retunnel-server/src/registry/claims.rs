//! Who decides about the ownership of an address beyond this process.

use std::fmt;

use futures_util::future::BoxFuture;
use retunnel_proto::message::Refusal;

use crate::{account::AccountId, tunnel::address::PublicAddress};

/// Decides whether an account may own an address, before the registry of this process does. Nodes that share their names
/// ask a common store here, which may be slow and may refuse.
pub(crate) trait Claims: fmt::Debug + Send + Sync {
    /// Asks for an address.
    ///
    /// # Errors
    /// The refusal to send to the client.
    fn claim<'a>(&'a self, address: &'a PublicAddress, account: AccountId) -> BoxFuture<'a, Result<(), Refusal>>;
}

/// A server of one node: its registry knows every owner.
#[derive(Debug)]
pub(crate) struct SingleNode;

impl Claims for SingleNode {
    fn claim<'a>(&'a self, _: &'a PublicAddress, _: AccountId) -> BoxFuture<'a, Result<(), Refusal>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
