//! Heads of visitors and local services, chunked bodies, host names.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    retunnel_server::fuzzing::http(data);
});
