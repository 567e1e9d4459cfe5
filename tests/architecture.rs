//! Holds the house against its rules: layers, cycles, file sizes, opening comments. Reads source text; runs nothing.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Longest allowed file, lines.
const FILE_LIMIT_LINES: usize = 500;

/// The rooms by layer. A room imports only from lower layers; rooms of one layer never import each other.
const LAYERS: &[(u8, &[&str])] = &[
    (7, &["main"]),
    (6, &["cli", "throwaway"]),
    (5, &["daemon"]),
    (4, &["pipeline", "snapshot", "status"]),
    (3, &["source", "assemble", "sink", "ack"]),
    (2, &["wire", "decode", "schema", "conflict", "telemetry"]),
    (1, &["config"]),
    (0, &["model", "metrics", "backoff", "shutdown"]),
];

/// Imports inside one row that are allowed on purpose: `cli` shows the demo on throw-away servers; `pipeline` runs the copy.
const ALLOWED_SIDEWAYS: &[(&str, &str)] = &[("cli", "throwaway"), ("pipeline", "snapshot"), ("pipeline", "status")];

fn layer_of(room: &str) -> Option<u8> {
    LAYERS.iter().find(|(_, rooms)| rooms.contains(&room)).map(|(layer, _)| *layer)
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(folders: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in folders {
        rust_files(&root().join(folder), &mut found);
    }
    found.sort();
    found
}

/// `src/wire/frame.rs` → `wire`; `src/main.rs` → `main`; `src/lib.rs` → None.
fn room_of(path: &Path) -> Option<String> {
    let relative = path.strip_prefix(root().join("src")).ok()?;
    let first = relative.components().next()?.as_os_str().to_str()?;
    let room = first.strip_suffix(".rs").unwrap_or(first);
    (room != "lib").then(|| room.to_owned())
}

/// The rooms named in `crate::ROOM` and `walrelay::ROOM` paths, also in `use crate::{a::…, b::…}` groups; comments are left out.
fn imports_of(text: &str) -> BTreeSet<String> {
    let code: String = text.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n");
    let mut rooms = BTreeSet::new();
    for prefix in ["crate::", "walrelay::"] {
        for (at, _) in code.match_indices(prefix) {
            let rest = &code[at + prefix.len()..];
            if let Some(group) = rest.strip_prefix('{') {
                rooms.extend(first_segments_of_group(group));
            } else {
                rooms.insert(first_word(rest));
            }
        }
    }
    rooms.retain(|room| layer_of(room).is_some());
    rooms
}

fn first_word(text: &str) -> String {
    text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

fn first_segments_of_group(group: &str) -> Vec<String> {
    let mut depth = 0;
    let mut is_start = true;
    let mut segments = Vec::new();
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => is_start = true,
            c if is_start && !c.is_whitespace() => {
                segments.push(first_word(&group[at..]));
                is_start = false;
            }
            _ => {}
        }
    }
    segments
}

#[test]
fn every_import_goes_down() {
    let mut faults = Vec::new();
    for path in files_below(&["src"]) {
        let Some(room) = room_of(&path) else { continue };
        let Some(layer) = layer_of(&room) else {
            faults.push(format!("{}: the room \"{room}\" has no layer", path.display()));
            continue;
        };
        for import in imports_of(&fs::read_to_string(&path).unwrap()) {
            let is_allowed = ALLOWED_SIDEWAYS.contains(&(room.as_str(), import.as_str()));
            let target = layer_of(&import).unwrap();
            if import != room && target >= layer && !is_allowed {
                faults.push(format!("{}: {room} (layer {layer}) imports {import} (layer {target})", path.display()));
            }
        }
    }
    assert!(faults.is_empty(), "imports against the layers:\n{}", faults.join("\n"));
}

#[test]
fn no_room_reaches_itself_through_others() {
    let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in files_below(&["src"]) {
        let Some(room) = room_of(&path) else { continue };
        let imports = imports_of(&fs::read_to_string(&path).unwrap());
        arrows.entry(room.clone()).or_default().extend(imports.into_iter().filter(|import| *import != room));
    }
    assert_no_circle(&arrows);
}

/// The files beside it that a file names by `super::NAME`, also in groups; what stands in its tests is left out.
fn siblings_of(path: &Path, text: &str) -> BTreeSet<PathBuf> {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or("");
    let code: String = text.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n");
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices("super::").filter(|(at, _)| !code[..*at].ends_with("super::")) {
        match code[at + "super::".len()..].strip_prefix('{') {
            Some(group) => names.extend(first_segments_of_group(group)),
            None => drop(names.insert(first_word(&code[at + "super::".len()..]))),
        }
    }
    names.iter().map(|name| path.with_file_name(format!("{name}.rs"))).filter(|sibling| sibling.exists()).collect()
}

#[test]
fn no_file_reaches_itself_through_its_siblings() {
    let mut arrows: BTreeMap<PathBuf, BTreeSet<PathBuf>> = BTreeMap::new();
    for path in files_below(&["src", "benches"]) {
        let siblings = siblings_of(&path, &fs::read_to_string(&path).unwrap());
        arrows.insert(path.clone(), siblings.into_iter().filter(|sibling| *sibling != path).collect());
    }
    assert_no_circle(&arrows);
}

fn assert_no_circle<T: Ord + std::fmt::Debug>(arrows: &BTreeMap<T, BTreeSet<T>>) {
    for start in arrows.keys() {
        let mut reached = BTreeSet::new();
        let mut waiting: Vec<&T> = arrows[start].iter().collect();
        while let Some(room) = waiting.pop() {
            assert_ne!(room, start, "a circle passes through {start:?}; on its way: {reached:?}");
            if reached.insert(room) {
                waiting.extend(arrows.get(room).into_iter().flatten());
            }
        }
    }
}

#[test]
fn no_file_is_longer_than_the_limit() {
    for path in files_below(&["src", "tests", "benches", "examples"]) {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= FILE_LIMIT_LINES, "{} has {lines} lines, the limit is {FILE_LIMIT_LINES}", path.display());
    }
}

#[test]
fn every_file_opens_with_what_it_is() {
    for path in files_below(&["src", "tests", "benches", "examples"]) {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//!"), "{} does not open with a //! comment", path.display());
    }
}

#[test]
fn an_import_is_seen_in_every_form() {
    for (text, expected) in [
        ("use crate::wire::Frame;", vec!["wire"]),
        ("use crate::{model::{Lsn, State}, wire::Frame};", vec!["model", "wire"]),
        ("let x = crate::config::load();", vec!["config"]),
        ("// crate::wire is only spoken of", vec![]),
    ] {
        let expected: BTreeSet<String> = expected.into_iter().map(str::to_owned).collect();
        assert_eq!(imports_of(text), expected, "{text}");
    }
}
