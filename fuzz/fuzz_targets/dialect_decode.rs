//! Messages of dialects 2 and 3 from both sides: what is read is written and read as the same.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use retunnel_proto::dialect::{v2, v3};

fuzz_target!(|data: &[u8]| {
    if let Ok(message) = v2::decode_client(data)
        && let Some(bytes) = v2::encode_client(&message)
    {
        // NaN is not equal to itself.
        let again = v2::decode_client(&bytes).expect("our own message");
        assert_eq!(format!("{again:?}"), format!("{:?}", v2::decode_client(&bytes).expect("the same")));
    }
    let _ = v2::decode_server(data);
    let shared = Bytes::copy_from_slice(data);
    if let Ok(response) = v2::decode_response(&shared) {
        assert_eq!(v2::decode_response(&Bytes::from(v2::encode_response(&response))), Ok(response));
    }
    if let Ok(request) = v2::decode_request(&shared) {
        assert_eq!(v2::decode_request(&Bytes::from(v2::encode_request(&request))), Ok(request));
    }
    three(&shared);
});

fn three(data: &Bytes) {
    if let Ok(message) = v3::FromClient::decode(data) {
        assert_eq!(v3::FromClient::decode(&message.encode().into()), Ok(message));
    }
    if let Ok(message) = v3::FromServer::decode(data) {
        let again = v3::FromServer::decode(&message.encode(v3::WireVersion::Two).into());
        assert_eq!(again, Ok(message.clone()));
        v3::FromServer::decode(&message.encode(v3::WireVersion::One).into()).expect("our own message");
    }
    if let Ok(meta) = v3::HttpMeta::decode(data) {
        assert_eq!(v3::HttpMeta::decode(&meta.encode()), Ok(meta));
    }
    if let Ok(meta) = v3::SocketMeta::decode(data) {
        assert_eq!(v3::SocketMeta::decode(&meta.encode()), Ok(meta));
    }
}
