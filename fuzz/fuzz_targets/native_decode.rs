//! Headers and control messages of the native link.
#![no_main]

use libfuzzer_sys::fuzz_target;
use retunnel_proto::native::{
    self, FrameHeader, HEADER_LEN,
    control::{FromClient, FromServer, Open},
};

fuzz_target!(|data: &[u8]| {
    if let Some(header) = data.first_chunk::<HEADER_LEN>()
        && let Ok(decoded) = FrameHeader::decode(*header, 64 * 1024)
    {
        assert_eq!(FrameHeader::decode(decoded.encode(), 64 * 1024), Ok(decoded));
    }
    if let Ok(message) = FromClient::decode(data)
        && let Some(bytes) = message.clone().encode()
    {
        assert_eq!(FromClient::decode(&bytes), Ok(message));
    }
    let _ = FromServer::decode(data);
    let _ = Open::decode(data);
    let _ = native::decode_reason(data);
});
