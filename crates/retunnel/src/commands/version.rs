//! `retunnel version`.

use anyhow::Result;

use crate::output::Output;

pub(crate) fn run(output: Output) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    if output.json {
        output.json(&serde_json::json!({ "version": version }));
    } else {
        output.result(&format!("retunnel {version}"));
        output.status(&format!("{} {}", std::env::consts::OS, std::env::consts::ARCH));
    }
    Ok(())
}
