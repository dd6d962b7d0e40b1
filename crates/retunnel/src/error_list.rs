//! Tests that `docs/errors.md` lists exactly the stable codes of all crates, each with its cause and remedy.

use std::collections::{BTreeMap, BTreeSet};

use retunnel_client::{PageCode, RefusalCode, diagnose::Problem};
use retunnel_server::{ApiCode, TlsCode};

use crate::{exit, inspector::FailureCode};

type Codes = BTreeSet<String>;

fn codes<T: AsRef<str>>(all: impl IntoIterator<Item = T>) -> Codes {
    all.into_iter().map(|code| code.as_ref().to_owned()).collect()
}

/// The codes of each section, by its heading.
fn known() -> BTreeMap<&'static str, Codes> {
    BTreeMap::from([
        ("Pages of the edge", codes(PageCode::ALL.iter().map(|code| code.as_str()))),
        ("Refusals of sessions and tunnels", codes(RefusalCode::KNOWN.iter().map(RefusalCode::as_str))),
        ("REST API", codes(ApiCode::ALL.iter().map(|code| code.as_str()))),
        ("The inspector", codes(FailureCode::ALL.iter().map(|code| code.as_str()))),
        ("A server that does not start", codes(TlsCode::ALL.iter().map(|code| code.as_str()))),
        ("`retunnel diagnose`", codes(Problem::ALL.iter().map(|code| code.as_str()))),
        ("Exit codes of the program", codes(exit::ALL.iter().map(u8::to_string))),
    ])
}

/// The listed codes by heading. Panics on an incomplete row.
fn listed() -> BTreeMap<String, Codes> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/errors.md");
    let text = std::fs::read_to_string(path).expect("the list");
    let mut parts: BTreeMap<String, Codes> = BTreeMap::new();
    let mut heading = String::new();
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            heading = title.to_owned();
        }
        let Some(row) = line.strip_prefix("| ") else { continue };
        if row.starts_with("Code ") {
            continue;
        }
        let cells: Vec<&str> = row.trim_end_matches('|').split(" | ").map(str::trim).collect();
        assert!(cells.len() >= 2 && cells.iter().all(|cell| !cell.is_empty()), "a cell is empty: {line}");
        for code in cells[0].split(',').map(|code| code.trim().trim_matches('`')) {
            let is_new = parts.entry(heading.clone()).or_default().insert(code.to_owned());
            assert!(is_new, "`{code}` is listed twice under {heading}");
        }
    }
    parts
}

#[test]
fn exactly_the_known_codes_are_listed_with_cause_and_remedy() {
    let (known, listed) = (known(), listed());
    for (heading, codes) in &known {
        let found = listed.get(*heading).unwrap_or_else(|| panic!("docs/errors.md has no section `{heading}`"));
        let missing: Vec<_> = codes.difference(found).collect();
        let unknown: Vec<_> = found.difference(codes).collect();
        assert!(missing.is_empty() && unknown.is_empty(), "{heading}: not listed {missing:?}, not a code {unknown:?}");
    }
    let unchecked: Vec<_> = listed.keys().filter(|heading| !known.contains_key(heading.as_str())).collect();
    assert!(unchecked.is_empty(), "sections whose codes are not checked: {unchecked:?}");
}

#[test]
fn final_codes_are_listed_as_final() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/errors.md");
    let text = std::fs::read_to_string(path).expect("the list");
    for code in RefusalCode::KNOWN {
        let name = format!("`{code}`");
        let rows = text.lines().filter(|line| line.contains(&name) && line.starts_with("| `"));
        let listed = rows.filter_map(|row| match row.split(" | ").nth(1) {
            Some("yes") => Some(true),
            Some("no") => Some(false),
            _ => None,
        });
        assert_eq!(listed.collect::<Vec<_>>(), [code.is_final()], "{code}");
    }
}
