//! Configuration files.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = retunnel_config::TunnelsFile::parse(text, |name| (name.len() % 2 == 0).then(|| name.to_owned()));
    if let Ok(file) = retunnel_server::config::ServerFile::parse(text) {
        let _ = file.into_config("data".into());
    }
});
