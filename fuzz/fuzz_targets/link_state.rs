//! The state of a native link: two ends with calls and frames in any order, and bytes that are no frames.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    retunnel_link::fuzzing::link_state(data);
});
