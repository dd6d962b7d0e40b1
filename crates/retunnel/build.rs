//! Writes the list of libraries for `retunnel credits` from the lock file.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
};

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    // In the workspace, or next to the manifest of a published package.
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
    // The direct and transitive dependencies of the program.
    let mut needed = BTreeMap::new();
    let mut open: Vec<(String, Option<String>)> = vec![("retunnel".into(), None)];
    while let Some((name, version)) = open.pop() {
        for ((known, known_version), dependencies) in &packages {
            if *known == name
                && version.as_ref().is_none_or(|version| version == known_version)
                && needed.insert((known.clone(), known_version.clone()), ()).is_none()
            {
                // The lock file does not mark dev-dependencies; the manifests of our own packages do.
                let test_only = if known.starts_with("retunnel") {
                    test_only(&manifest.join("..").join(known).join("Cargo.toml"))
                } else {
                    BTreeSet::new()
                };
                for dependency in dependencies {
                    let mut words = dependency.split(' ').map(str::to_owned);
                    let (name, version) = (words.next().unwrap_or_default(), words.next());
                    if !test_only.contains(&name) {
                        open.push((name, version));
                    }
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

/// Packages that occur only under `[dev-dependencies]` in a manifest.
fn test_only(manifest: &Path) -> BTreeSet<String> {
    println!("cargo::rerun-if-changed={}", manifest.display());
    let text = fs::read_to_string(manifest).unwrap_or_default();
    let (mut section, mut shipped, mut tests) = ("", BTreeSet::new(), BTreeSet::new());
    for line in text.lines() {
        let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
        if line.starts_with('[') {
            section = line.trim();
        } else if !name.is_empty() && section == "[dev-dependencies]" {
            tests.insert(name.to_owned());
        } else if !name.is_empty() && section.ends_with("dependencies]") {
            shipped.insert(name.to_owned());
        }
    }
    &tests - &shipped
}
