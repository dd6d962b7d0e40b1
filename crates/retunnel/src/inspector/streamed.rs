//! Answers with many exchanges, sent while they are made: the memory of one exchange is enough for any number.

use std::{convert::Infallible, sync::Arc, vec};

use axum::body::Body;
use futures_util::{StreamExt, stream};
use serde_json::Value;

use super::{
    context::{Context, SharedContext},
    decode::Budget,
    store::Entry,
};

/// The exchanges that are still to be sent.
struct Rest {
    entries: vec::IntoIter<Arc<Entry>>,
    budget: Budget,
    is_first: bool,
}

/// A JSON text with a list of exchanges. `before` and `after` surround the list; `item` makes an entry of it. An exchange
/// that was dropped meanwhile is left out. Nothing is made before the caller has taken what came before it.
pub(crate) fn list(
    state: SharedContext,
    entries: Vec<Arc<Entry>>,
    before: String,
    after: &'static str,
    item: impl Fn(&Context, &Entry, &mut Budget) -> Value + Send + Sync + 'static,
) -> Body {
    let rest = Rest { entries: entries.into_iter(), budget: Budget::of_answer(), is_first: true };
    let item = Arc::new(item);
    let items = stream::unfold(rest, move |mut rest| {
        let (state, item) = (Arc::clone(&state), Arc::clone(&item));
        async move {
            let entry = rest.entries.find(|entry| !entry.is_evicted())?;
            let made = state.work(move |state| {
                let comma = if std::mem::take(&mut rest.is_first) { "" } else { "," };
                (format!("{comma}{}", item(state, &entry, &mut rest.budget)), rest)
            });
            Some(made.await)
        }
    });
    let whole = stream::iter([before]).chain(items).chain(stream::iter([after.to_owned()]));
    Body::from_stream(whole.map(Ok::<_, Infallible>))
}
