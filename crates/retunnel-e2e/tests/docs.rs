//! The documents agree with the repository: the tests of the reliability list, paths, links, widths, and the list
//! of dependencies.

#![expect(clippy::unwrap_used, reason = "a failed test says where")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The widest line of prose, unless it is a single sentence; tables and code may be wider.
const WIDTH: usize = 100;

/// Folders and files of the repository that the checks read.
const PARTS: [&str; 9] =
    [".ci", "Cargo.toml", "Makefile", "clippy.toml", "crates", "deny.toml", "docs", "fuzz", "scripts"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn collect(path: &Path, found: &mut Vec<PathBuf>) {
    if path.ends_with("target") || path.ends_with("node_modules") {
        return;
    }
    found.push(path.to_owned());
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            collect(&entry.unwrap().path(), found);
        }
    }
}

/// Every file and folder of the repository's parts, relative to its root.
fn repository() -> BTreeSet<String> {
    let root = root();
    let mut found = Vec::new();
    for part in PARTS {
        collect(&root.join(part), &mut found);
    }
    for entry in fs::read_dir(&root).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    found.iter().map(|path| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned()).collect()
}

/// The Markdown files of the repository, with their text.
fn documents() -> Vec<(String, String)> {
    let is_document = |path: &String| path.ends_with(".md") && (!path.contains('/') || path.starts_with("docs/"));
    let paths = repository().into_iter().filter(is_document);
    paths.map(|path| (path.clone(), fs::read_to_string(root().join(&path)).unwrap())).collect()
}

/// The lines of a document that are not inside a code block, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    text.lines().enumerate().filter_map(move |(number, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        (!is_code && !is_fence).then_some((number + 1, line))
    })
}

/// What stands between single backticks.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// The rows in the name of a test: `row_5_…`, `rows_1_to_4_…`, `rows_14_and_16_…`.
fn rows(name: &str) -> Option<Vec<u32>> {
    let words: Vec<&str> = name.split('_').collect();
    let number = |index: usize| words.get(index)?.parse::<u32>().ok();
    match (words[0], number(1)) {
        ("row", Some(row)) => Some(vec![row]),
        ("rows", Some(first)) => match (words[2], number(3)) {
            ("to", Some(last)) => Some((first..=last).collect()),
            ("and", Some(second)) => Some(vec![first, second]),
            _ => panic!("`{name}`: expected `rows_A_to_B_` or `rows_A_and_B_`"),
        },
        _ => None,
    }
}

/// A test: the file and the name.
type Test = (String, String);

/// Every function of the sources whose name begins with rows, by row.
fn tests_of_rows() -> BTreeMap<u32, BTreeSet<Test>> {
    let mut found: BTreeMap<u32, BTreeSet<Test>> = BTreeMap::new();
    for path in repository().into_iter().filter(|path| path.ends_with(".rs")) {
        for line in fs::read_to_string(root().join(&path)).unwrap().lines() {
            let Some((_, rest)) = line.split_once("fn row") else { continue };
            let name = format!("row{}", rest.split('(').next().unwrap());
            for row in rows(&name).into_iter().flatten() {
                found.entry(row).or_default().insert((path.clone(), name.clone()));
            }
        }
    }
    found
}

/// The tests that `docs/reliability.md` lists, by row. Panics if a row is listed twice or names neither a test nor `no test`.
fn listed() -> BTreeMap<u32, BTreeSet<Test>> {
    let text = fs::read_to_string(root().join("docs/reliability.md")).unwrap();
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let Ok(row) = cells[0].parse::<u32>() else { continue };
        assert!(cells.len() == 4 && cells.iter().all(|cell| !cell.is_empty()), "row {row}: expected four cells");
        let (mut path, mut tests) = ("", BTreeSet::new());
        if !cells[3].starts_with("no test") {
            for word in quoted(cells[3]) {
                match word.contains('/') {
                    true => path = word,
                    false => _ = tests.insert((path.to_owned(), word.to_owned())),
                }
            }
            assert!(!tests.is_empty(), "row {row}: name a test, or say `no test`");
        }
        assert!(found.insert(row, tests).is_none(), "row {row} is listed twice");
    }
    found
}

#[test]
fn the_reliability_list_and_the_tests_agree() {
    let (listed, existing) = (listed(), tests_of_rows());
    assert!(listed.keys().copied().eq(1..=60), "expected the rows 1 to 60, got {:?}", listed.keys());
    let mut problems = Vec::new();
    for (row, tests) in &existing {
        let there = listed.get(row).unwrap_or_else(|| panic!("docs/reliability.md has no row {row}: {tests:?}"));
        problems.extend(tests.difference(there).map(|(path, name)| format!("row {row} does not list {name} ({path})")));
    }
    for (row, tests) in &listed {
        for (path, name) in tests {
            let source = fs::read_to_string(root().join(path)).unwrap_or_default();
            if !source.contains(&format!("fn {name}(")) {
                problems.push(format!("row {row} lists {name}, which is not in `{path}`"));
            }
        }
    }
    assert!(problems.is_empty(), "docs/reliability.md:\n{}", problems.join("\n"));
}

/// Whether a quoted word names something in this repository.
fn is_path(word: &str) -> bool {
    let is_plain = word.chars().all(|char| char.is_ascii_alphanumeric() || "._-/".contains(char));
    let first = word.split('/').next().unwrap();
    let is_rooted = word.contains('/') && ["crates", "docs", "fuzz", "scripts", ".ci"].contains(&first);
    let has_extension = word.ends_with(".rs") || word.ends_with(".md") || word.ends_with(".toml");
    is_plain && (is_rooted || (has_extension && !word.starts_with('.')))
}

#[test]
fn every_path_in_the_documents_exists() {
    let repository = repository();
    let mut problems = Vec::new();
    for (document, text) in documents() {
        for (number, line) in prose(&text) {
            for word in quoted(line).filter(|word| is_path(word)) {
                let word = word.trim_end_matches('/');
                let end = format!("/{word}");
                if !repository.contains(word) && !repository.iter().any(|path| path.ends_with(&end)) {
                    problems.push(format!("{document}:{number}: there is no `{word}`"));
                }
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// The anchor that GitHub gives to a heading.
fn anchor(heading: &str) -> String {
    let letters = heading.to_lowercase().replace(' ', "-");
    letters.chars().filter(|char| char.is_alphanumeric() || "-_".contains(*char)).collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter(|(_, line)| line.starts_with('#'));
    headings.map(|(_, line)| anchor(line.trim_start_matches('#').trim())).collect()
}

#[test]
fn every_link_in_the_documents_leads_somewhere() {
    let root = root();
    let mut problems = Vec::new();
    for (document, text) in documents() {
        for (number, line) in prose(&text) {
            for rest in line.split("](").skip(1) {
                let target = rest.split(')').next().unwrap();
                if target.contains("://") || target.starts_with("mailto:") {
                    continue;
                }
                let (file, heading) = target.split_once('#').unwrap_or((target, ""));
                let path = match file {
                    "" => root.join(&document),
                    file => root.join(&document).parent().unwrap().join(file),
                };
                let is_there = path.exists()
                    && (heading.is_empty() || anchors(&fs::read_to_string(&path).unwrap()).contains(heading));
                if !is_there {
                    problems.push(format!("{document}:{number}: {target} leads nowhere"));
                }
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Whether another sentence begins within the line.
fn has_two_sentences(line: &str) -> bool {
    let line = line.trim_start_matches(|char: char| char == ' ' || char == '.' || char.is_ascii_digit());
    line.match_indices(". ").any(|(index, _)| {
        line[..index].ends_with(|char: char| char.is_alphanumeric() || "`)*".contains(char))
            && line[index + 2..].starts_with(|char: char| char.is_uppercase() || "`[*".contains(char))
    })
}

#[test]
fn prose_is_wrapped_or_has_one_sentence_a_line() {
    let mut problems = Vec::new();
    for (document, text) in documents() {
        // Tables and pictures cannot be wrapped.
        let is_free = |line: &str| ["|", "![", "<img"].iter().any(|start| line.trim_start().starts_with(start));
        for (number, line) in prose(&text).filter(|(_, line)| !is_free(line)) {
            if line.chars().count() > WIDTH && has_two_sentences(line) {
                problems.push(format!("{document}:{number}: several sentences, wider than {WIDTH} columns"));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn every_dependency_has_a_reason() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let (_, rest) = manifest.split_once("[workspace.dependencies]\n").unwrap();
    let (section, _) = rest.split_once("\n[").unwrap();
    let named = section.lines().filter_map(|line| line.split_once(" = ")).map(|(name, _)| name);
    let declared: BTreeSet<&str> = named.filter(|name| !name.starts_with("retunnel")).collect();
    let text = fs::read_to_string(root().join("docs/dependencies.md")).unwrap();
    let cells = text.lines().filter(|line| line.starts_with("| `")).filter_map(|line| line.split(" | ").next());
    let listed: BTreeSet<&str> = cells.flat_map(quoted).collect();
    let missing: Vec<_> = declared.difference(&listed).collect();
    let unknown: Vec<_> = listed.difference(&declared).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "docs/dependencies.md: missing {missing:?}, unknown {unknown:?}");
}

#[test]
fn make_help_lists_every_target() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let (_, rest) = makefile.split_once(".PHONY:").unwrap();
    let (phony, _) = rest.split_once("\n\n").unwrap();
    let listed = |target: &str| {
        let start = format!("{target}:");
        makefile.lines().any(|line| line.starts_with(&start) && line.contains(" ## "))
    };
    let missing: Vec<_> = phony.split_whitespace().filter(|word| *word != "\\" && !listed(word)).collect();
    assert!(missing.is_empty(), "without a line in `make help`: {missing:?}");
}
