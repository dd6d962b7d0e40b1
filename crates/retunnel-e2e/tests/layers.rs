//! Imports run downward only: the layers of the server and of the client library, and a test that reads their source files.
//!
//! A module is a file of `src` together with its folder. A path such as `crate::transport::Socket` is an arrow from the
//! module it is written in to the one that it names. An arrow must lead to a lower layer, never to the same layer or up.
//! Files must not form a circle either. Unit tests may import whatever they need.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// A crate and its layers from top to bottom. Modules of one layer do not know each other.
struct Layered {
    name: &'static str,
    layers: &'static [&'static [&'static str]],
}

const SERVER: Layered = Layered {
    name: "retunnel-server",
    layers: &[
        &["lib"],
        &["server"],
        &["edge", "control", "rest"],
        &["upstream", "policy", "registry", "hostnames"],
        &["tunnel", "auth"],
        &["net", "store"],
        &["limits"],
        &["account", "clock", "config", "fuzzing", "html", "running", "version"],
    ],
};

const CLIENT: Layered = Layered {
    name: "retunnel-client",
    layers: &[
        &["lib"],
        &["client"],
        &["tunnel", "session", "diagnose"],
        &["exchange", "relay", "local"],
        &["api", "service"],
        &["connection", "state"],
        &["event", "tap"],
        &["spec", "transport"],
        &["error", "target"],
        &["dialect", "endpoint", "trust"],
        &["account", "credentials", "listener", "reconnect", "stats", "validation", "version"],
    ],
};

#[test]
fn arrows_run_down() {
    for Layered { name, layers } in [SERVER, CLIENT] {
        let files = source_files(name);
        let layer = |module: &str| {
            let found = layers.iter().position(|layer| layer.contains(&module));
            found.unwrap_or_else(|| panic!("`{module}` of {name} is in no layer: add it"))
        };
        let modules: BTreeSet<&str> = files.keys().map(|file| module_of(file)).collect();
        let listed: BTreeSet<&str> = layers.concat().into_iter().collect();
        let gone: Vec<_> = listed.difference(&modules).collect();
        assert!(gone.is_empty(), "the layers of {name} list modules that do not exist: {gone:?}");
        let mut wrong = BTreeSet::new();
        for (from, targets) in arrows(&files) {
            for to in targets {
                let (from_module, to_module) = (module_of(&from), module_of(&to));
                if from_module != to_module && layer(from_module) >= layer(to_module) {
                    wrong.insert(format!("{from} -> {to}"));
                }
            }
        }
        assert!(wrong.is_empty(), "arrows of {name} that do not run down:\n{}", Vec::from_iter(wrong).join("\n"));
    }
}

#[test]
fn files_form_no_circle() {
    for Layered { name, .. } in [SERVER, CLIENT] {
        let mut arrows = arrows(&source_files(name));
        // A folder's first file and what is inside it are one idea: the parts may use what their parent declares.
        for (file, targets) in &mut arrows {
            targets.retain(|to| !to.starts_with(&format!("{file}/")));
        }
        let circles = circles(&arrows);
        let shown: Vec<_> =
            circles.iter().map(|circle| format!("{} files: {}", circle.len(), circle.join(", "))).collect();
        assert!(shown.is_empty(), "circles between files of {name}:\n{}", shown.join("\n"));
    }
}

#[test]
fn paths_are_found_in_all_their_forms() {
    let text = r#"
        // use crate::comment;
        use crate::{
            a::{self, b::C},
            d::*,
        };
        use super::e;
        fn f<'a>() -> &'a str { self::g::h(); let _ = ('"', '\'', r"crate::raw"); "crate::string" }
        #[cfg(test)]
        mod tests { use crate::test; }
    "#;
    let path = |text: &str| text.split("::").map(str::to_owned).collect::<Vec<_>>();
    let expected = ["crate::a", "crate::a::b::C", "crate::d", "super::e", "self::g::h"].map(path);
    assert_eq!(paths_in(text), expected);
}

/// `tap/http1` for `src/tap/http1.rs`, and what is written there.
type Files = BTreeMap<String, String>;
type Arrows = BTreeMap<String, BTreeSet<String>>;

fn source_files(name: &str) -> Files {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name).join("src");
    let mut files = Files::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("the source folder can be read") {
            let path: PathBuf = entry.expect("its entries can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
                let name = path.strip_prefix(&root).expect("it is below").with_extension("");
                let name = name.to_str().expect("names are UTF-8").replace('\\', "/");
                files.insert(name, fs::read_to_string(path).expect("a source file can be read"));
            }
        }
    }
    files
}

fn module_of(file: &str) -> &str {
    file.split('/').next().unwrap_or(file)
}

/// The files that each file names in a path or declares as a module.
fn arrows(files: &Files) -> Arrows {
    let mut arrows = Arrows::new();
    for (file, text) in files {
        let own: Vec<String> = if file == "lib" { Vec::new() } else { file.split('/').map(str::to_owned).collect() };
        let mut targets = BTreeSet::new();
        for path in paths_in(text) {
            let mut segments = match path[0].as_str() {
                "crate" => Vec::new(),
                _ => own.clone(),
            };
            for segment in &path {
                match segment.as_str() {
                    "super" => drop(segments.pop()),
                    "crate" | "self" => {}
                    name => segments.push(name.to_owned()),
                }
            }
            // The longest beginning of the path that is a file; an item of the crate's root is the root's.
            let target = (1..=segments.len()).rev().map(|len| segments[..len].join("/"));
            let target = target.into_iter().find(|name| files.contains_key(name)).unwrap_or_else(|| "lib".into());
            targets.insert(target);
        }
        let prefix = if file == "lib" { String::new() } else { format!("{file}/") };
        let is_child = |name: &&String| {
            name.strip_prefix(&prefix).is_some_and(|rest| !rest.contains('/') && !rest.is_empty()) && *name != "lib"
        };
        targets.extend(files.keys().filter(is_child).cloned());
        targets.remove(file);
        arrows.insert(file.clone(), targets);
    }
    arrows
}

/// Paths that begin with `crate`, `super` or `self`, outside comments, texts and unit tests.
fn paths_in(text: &str) -> Vec<Vec<String>> {
    let tokens = tokens(text);
    let mut paths = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at..].starts_with(&["#", "[", "cfg", "(", "test", ")", "]"].map(str::to_owned))
            && tokens[at + 7..].starts_with(&["mod", "tests"].map(str::to_owned))
        {
            break;
        }
        let begins = matches!(tokens[at].as_str(), "crate" | "super" | "self");
        if begins && tokens.get(at + 1).is_some_and(|token| token == "::") {
            at = tree(&tokens, at, &[], &mut paths);
        } else {
            at += 1;
        }
    }
    paths
}

/// Reads a path that may branch; gives the place after it.
fn tree(tokens: &[String], mut at: usize, before: &[String], paths: &mut Vec<Vec<String>>) -> usize {
    let mut path = before.to_vec();
    loop {
        match tokens.get(at).map(String::as_str) {
            Some("{") => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token != "}") {
                    at = if tokens[at] == "," { at + 1 } else { tree(tokens, at, &path, paths) };
                }
                return at + 1;
            }
            Some(name) if name.starts_with(|c: char| c.is_alphabetic() || c == '_') => {
                // `a::{self}` is `a`.
                if name != "self" || path.is_empty() {
                    path.push(name.to_owned());
                }
                at += 1;
            }
            // A glob, or the type arguments of a path in an expression.
            _ => at += 1,
        }
        if tokens.get(at).is_none_or(|token| token != "::") {
            break;
        }
        at += 1;
    }
    paths.push(path);
    if tokens.get(at).is_some_and(|token| token == "as") { at + 2 } else { at }
}

/// Words, `::` and single signs, without comments and texts.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut tokens, mut at) = (Vec::new(), 0);
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('/')) => {
                while at < chars.len() && chars[at] != '\n' {
                    at += 1;
                }
            }
            ('r', Some('"' | '#')) => {
                let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
                let end: String = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
                at += hashes + 2;
                while at < chars.len() && !chars[at..].starts_with(&end.chars().collect::<Vec<_>>()) {
                    at += 1;
                }
                at += end.len();
            }
            ('"', _) => {
                at += 1;
                while at < chars.len() && chars[at] != '"' {
                    at += if chars[at] == '\\' { 2 } else { 1 };
                }
                at += 1;
            }
            // A character, not a lifetime.
            ('\'', Some('\\')) => {
                at += 3;
                while at < chars.len() && chars[at] != '\'' {
                    at += 1;
                }
                at += 1;
            }
            ('\'', _) if chars.get(at + 2) == Some(&'\'') => at += 3,
            (':', Some(':')) => {
                tokens.push("::".to_owned());
                at += 2;
            }
            (c, _) if is_word(c) => {
                let word: String = chars[at..].iter().take_while(|c| is_word(**c)).collect();
                at += word.chars().count();
                tokens.push(word);
            }
            (c, _) => {
                if !c.is_whitespace() {
                    tokens.push(c.to_string());
                }
                at += 1;
            }
        }
    }
    tokens
}

/// Groups of files that reach each other, largest first.
fn circles(arrows: &Arrows) -> Vec<Vec<String>> {
    let reached = |start: &String| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![start]);
        while let Some(file) = next.pop() {
            for to in &arrows[file] {
                if seen.insert(to) {
                    next.push(to);
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&String, BTreeSet<&String>> = arrows.keys().map(|file| (file, reached(file))).collect();
    let mut circles = BTreeSet::new();
    for (file, seen) in &reached {
        if seen.contains(*file) {
            let circle: Vec<String> =
                seen.iter().filter(|other| reached[**other].contains(*file)).map(|other| (*other).clone()).collect();
            circles.insert(circle);
        }
    }
    let mut circles = Vec::from_iter(circles);
    circles.sort_by_key(|circle| std::cmp::Reverse(circle.len()));
    circles
}
