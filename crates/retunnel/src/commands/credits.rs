//! `retunnel credits`: the libraries in this program, from the lock file it was built with.

use anyhow::Result;

use crate::output::Output;

const LIBRARIES: &str = include_str!(concat!(env!("OUT_DIR"), "/credits.txt"));

pub(crate) fn run(output: Output) -> Result<()> {
    let libraries: Vec<(&str, &str)> = LIBRARIES.lines().filter_map(|line| line.split_once(' ')).collect();
    if output.json {
        let list: Vec<_> =
            libraries.iter().map(|(name, version)| serde_json::json!({ "name": name, "version": version })).collect();
        output.json(&serde_json::json!({ "libraries": list }));
        return Ok(());
    }
    output.status(&format!(
        "ReTunnel is built on {} free libraries. Thank you to everybody who wrote them:\n",
        libraries.len()
    ));
    for (name, version) in libraries {
        output.result(&format!("{name} {version}"));
    }
    Ok(())
}
