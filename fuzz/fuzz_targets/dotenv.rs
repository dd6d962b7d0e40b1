//! `.env`, which other programs write too: any bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use retunnel_config::Dotenv;

fuzz_target!(|bytes: &[u8]| {
    let parsed = Dotenv::parse(bytes);
    if let Some(value) = parsed.value("A") {
        // A value in single quotes means itself.
        if !value.contains(['\'', '\n', '\r']) {
            assert_eq!(Dotenv::parse(format!("A='{value}'").as_bytes()).value("A"), Some(value));
        }
    }
});
