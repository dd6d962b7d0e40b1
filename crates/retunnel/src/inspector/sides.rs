//! One value for each side of an exchange.

use std::ops::{Index, IndexMut};

use retunnel_client::tap::Side;

/// A value for the request and one for the response.
#[derive(Debug, Default, Clone)]
pub(crate) struct Sides<T> {
    pub(crate) request: T,
    pub(crate) response: T,
}

impl<T> Sides<T> {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        [&self.request, &self.response].into_iter()
    }
}

impl<T> Index<Side> for Sides<T> {
    type Output = T;

    fn index(&self, side: Side) -> &T {
        match side {
            Side::Request => &self.request,
            Side::Response => &self.response,
        }
    }
}

impl<T> IndexMut<Side> for Sides<T> {
    fn index_mut(&mut self, side: Side) -> &mut T {
        match side {
            Side::Request => &mut self.request,
            Side::Response => &mut self.response,
        }
    }
}
