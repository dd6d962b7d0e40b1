//! The local service's own address in the answers of tunnels that hide the public one from it.

use retunnel_proto::origin::RESTORED;
pub(crate) use retunnel_proto::origin::{LocalOrigin, host_refused};

use super::http1::response::ResponseHead;

/// Turns addresses of an answer's head back, so that a redirect leads the visitor to the public address.
pub(crate) fn restore(local: &LocalOrigin, head: &mut ResponseHead, public_origin: &[u8]) {
    for name in RESTORED {
        if let Some(value) = head.headers.get(name).and_then(|value| local.restored(value, public_origin)) {
            head.headers.set(name, &value);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::edge::http1::response;

    #[test]
    fn redirects_lead_to_the_public_address() {
        let origin = LocalOrigin::parse("http://localhost:3000").expect("valid");
        for (location, expected) in [
            ("http://localhost:3000/a?b", "https://a.test/a?b"),
            ("http://localhost:3000", "https://a.test"),
            ("http://localhost:30001/a", "http://localhost:30001/a"),
            ("/relative", "/relative"),
        ] {
            let text =
                format!("HTTP/1.1 302 Found\r\nX: 1\r\nLocation: {location}\r\nY: 2\r\nContent-Length: 0\r\n\r\n");
            let mut head = response::parse(&Bytes::from(text), false).expect("valid").expect("complete");
            restore(&origin, &mut head, b"https://a.test");
            assert_eq!(head.headers.get("location"), Some(expected.as_bytes()));
            assert_eq!(head.headers.iter().count(), 4);
            assert_eq!(head.headers.get("y"), Some(&b"2"[..]));
        }
    }
}
