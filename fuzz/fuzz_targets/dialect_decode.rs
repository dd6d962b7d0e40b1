//! Messages of dialect 2 from both sides: what is read is written and read as the same.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use retunnel_proto::dialect::v2;

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
});
