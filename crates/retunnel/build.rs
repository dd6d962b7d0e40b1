//! Writes the list of libraries for `retunnel credits` from the lock file.

use std::{collections::BTreeMap, env, fs, path::PathBuf};

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    // In the workspace, or beside the manifest of a published package.
    let lock =
        ["../../Cargo.lock", "Cargo.lock"].map(|path| manifest.join(path)).into_iter().find(|path| path.exists());
    let text = lock.as_ref().and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    if let Some(path) = lock {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    let mut packages: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for package in text.split("[[package]]").skip(1) {
        let field = |name: &str| {
            let start = package.find(&format!("\n{name} = \""))? + name.len() + 5;
            package[start..].split('"').next().map(str::to_owned)
        };
        let (Some(name), Some(version)) = (field("name"), field("version")) else { continue };
        let dependencies = package.split("dependencies = [").nth(1).and_then(|list| list.split(']').next());
        let dependencies = dependencies.unwrap_or_default().split('"').skip(1).step_by(2).map(str::to_owned).collect();
        packages.insert((name, version), dependencies);
    }
    // What the program needs, directly or not.
    let mut needed = BTreeMap::new();
    let mut open: Vec<(String, Option<String>)> = vec![("retunnel".into(), None)];
    while let Some((name, version)) = open.pop() {
        for ((known, known_version), dependencies) in &packages {
            if *known == name
                && version.as_ref().is_none_or(|version| version == known_version)
                && needed.insert((known.clone(), known_version.clone()), ()).is_none()
            {
                for dependency in dependencies {
                    let mut words = dependency.split(' ').map(str::to_owned);
                    open.push((words.next().unwrap_or_default(), words.next()));
                }
            }
        }
    }
    let list: String = needed
        .keys()
        .filter(|(name, _)| !name.starts_with("retunnel"))
        .map(|(name, version)| format!("{name} {version}\n"))
        .collect();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("credits.txt");
    fs::write(out, list).expect("the build directory can be written");
}
