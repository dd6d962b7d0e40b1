//! `retunnel credits`: the libraries of this program, from the lock file of its build.

use anyhow::Result;

use crate::output::Output;

const LIBRARIES: &str = include_str!(concat!(env!("OUT_DIR"), "/credits.txt"));
/// The libraries of the inspector's pages; `scripts/vendor-web` fetches them.
const WEB_LIBRARIES: [(&str, &str); 4] =
    [("@preact/signals", "2.11.4"), ("@preact/signals-core", "1.14.5"), ("htm", "3.1.1"), ("preact", "11.2.0")];

pub(crate) fn run(output: Output) -> Result<()> {
    let libraries: Vec<(&str, &str)> =
        LIBRARIES.lines().filter_map(|line| line.split_once(' ')).chain(WEB_LIBRARIES).collect();
    if output.json {
        let list: Vec<_> =
            libraries.iter().map(|(name, version)| serde_json::json!({ "name": name, "version": version })).collect();
        output.json(&serde_json::json!({ "libraries": list }));
        return Ok(());
    }
    output.status(&format!(
        "ReTunnel is built on {} open source libraries. Thanks to everyone who wrote them:\n",
        libraries.len()
    ));
    for (name, version) in libraries {
        output.result(&format!("{name} {version}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_web_libraries_match_the_fetch_script() {
        let script = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/vendor-web"))
            .expect("the script");
        for (name, version) in WEB_LIBRARIES {
            assert!(script.contains(&format!("fetch {name} {version} ")), "{name}");
        }
    }
}
