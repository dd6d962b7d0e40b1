//! Entry points of the fuzz targets.

use bytes::{Bytes, BytesMut};

use retunnel_proto::http1::{
    Framing, HeadLimits,
    body::Decoder,
    host::Host,
    request::{self, RequestError},
    response,
    write::{self, Visitor},
};

/// Reads bytes as a visitor's request, a local service's answer, a chunked body and a host.
///
/// # Panics
/// When a rewritten head means something else than the one it came from, which must not happen.
pub fn http(data: &[u8]) {
    let mut scanned = 0;
    if let Ok(Some(end)) = request::find_end(data, &mut scanned, HeadLimits::REQUEST)
        && let Ok(head) = request::parse(Bytes::copy_from_slice(&data[..end]), HeadLimits::REQUEST)
    {
        let address = std::net::IpAddr::from([192, 0, 2, 1]);
        let visitor =
            Visitor { address, by_trusted_proxy: false, is_encrypted: false, strip_authorization: false, local: None };
        let mut out = BytesMut::new();
        write::request(&head, visitor, &mut out);
        match request::parse(out.freeze(), HeadLimits::REQUEST) {
            Ok(again) => {
                assert_eq!((&again.method, &again.target), (&head.method, &head.target));
                assert_eq!((again.body, &again.host), (head.body, &head.host));
            }
            // Our own three headers may be the ones that are too many.
            Err(error) => assert_eq!(error, RequestError::HeadersTooLarge),
        }
    }
    let _ = response::parse(&Bytes::copy_from_slice(data), false, HeadLimits::RESPONSE);
    let _ = Host::parse(data);
    let mut decoder = Decoder::new(Framing::Chunked);
    let mut at = 0;
    while let Ok(step) = decoder.step(&data[at..]) {
        at += step.framing + step.payload;
        if decoder.is_done() || step.framing + step.payload == 0 {
            break;
        }
    }
}
