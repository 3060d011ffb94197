//! The shape of the source: imports run one way, `unsafe`, files, clocks and threads stay at the edges.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::fs;
use std::path::{Path, PathBuf};

/// What each layer may name. A layer always may name itself.
const MAY_USE: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("error", &["types"]),
    ("record", &["error", "types"]),
    ("config", &["record", "error", "types"]),
    ("protocol", &["record", "config", "error", "types"]),
    ("storage", &["error", "types"]),
    ("segment", &["storage", "protocol", "record", "config", "error", "types"]),
    ("log", &["segment", "storage", "protocol", "record", "config", "error", "types"]),
    ("partition", &["log", "segment", "storage", "protocol", "record", "config", "error", "types"]),
    (
        "store",
        &[
            "partition",
            "log",
            "segment",
            "storage",
            "protocol",
            "record",
            "config",
            "error",
            "types",
        ],
    ),
    (
        "producer",
        &[
            "store",
            "partition",
            "log",
            "segment",
            "storage",
            "protocol",
            "record",
            "config",
            "error",
            "types",
        ],
    ),
    ("manual", &[]),
    (
        "simulation",
        &[
            "store",
            "partition",
            "log",
            "segment",
            "storage",
            "protocol",
            "record",
            "config",
            "error",
            "types",
        ],
    ),
];

/// Words, and the files that may hold them. Tests inside a module may use the file system.
const EDGES: &[(&str, &[&str])] = &[
    ("unsafe", &["src/storage/"]),
    ("std::fs", &["src/storage/"]),
    ("SystemTime::now", &["src/storage/"]),
    ("Instant::now", &["src/storage/", "src/partition/", "src/producer/", "src/store/"]),
    ("process::id", &["src/storage/"]),
    ("thread::spawn", &[]),
    ("thread::Builder", &["src/store/background.rs"]),
    ("thread::sleep", &["src/store/view.rs"]),
];

const LINES_MAX: usize = 1000;

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn layer_of(path: &str) -> &str {
    let inside = path.strip_prefix("src/").unwrap_or(path);
    inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs")
}

/// The code of a file: no comments, no text, and nothing from the first test module on.
fn code(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod ").unwrap_or(text.len());
    let lines = text[..end].lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.map(without_text).collect::<Vec<_>>().join("\n")
}

fn without_text(line: &str) -> String {
    line.split('"').step_by(2).collect::<Vec<_>>().join("\"\"")
}

/// The layers that a file's code names with `crate::`.
fn named_layers(code: &str) -> Vec<&str> {
    code.match_indices("crate::")
        .map(|(at, word)| {
            let rest = &code[at + word.len()..];
            let end = rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_');
            &rest[..end.unwrap_or(rest.len())]
        })
        .filter(|name| MAY_USE.iter().any(|(layer, _)| layer == name))
        .collect()
}

fn faults(path: &str, text: &str) -> Vec<String> {
    let code = code(text);
    let layer = layer_of(path);
    let mut faults = Vec::new();
    if let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == layer) {
        for named in named_layers(&code) {
            if named != layer && !allowed.contains(&named) {
                faults.push(format!("{path}: {layer} names {named}"));
            }
        }
    } else if layer != "lib" {
        faults.push(format!("{path}: {layer} is no known layer"));
    }
    for (word, homes) in EDGES {
        let at_home = homes.iter().any(|home| path.starts_with(home));
        let used = code.match_indices(word).any(|(at, _)| {
            let after = code[at + word.len()..].chars().next();
            !after.is_some_and(|letter| letter.is_alphanumeric() || letter == '_')
        });
        if used && !at_home {
            faults.push(format!("{path}: {word} is used outside its home"));
        }
    }
    if !text.is_ascii() {
        faults.push(format!("{path}: not ASCII"));
    }
    let lines = text.find("#[cfg(test)]\nmod ").map_or(text, |end| &text[..end]).lines().count();
    if lines > LINES_MAX {
        faults.push(format!("{path}: {lines} lines"));
    }
    faults
}

#[test]
fn imports_run_one_way_and_the_edges_hold() {
    let mut all = Vec::new();
    let files = sources(&root().join("src"));
    assert!(files.len() > 30, "the sources were not found");
    for file in files {
        let path = file.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/");
        all.extend(faults(&path, &fs::read_to_string(&file).unwrap()));
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn the_scanner_sees_what_it_is_there_for() {
    for (path, text) in [
        ("src/log/x.rs", "use crate::store::Store;"),
        ("src/error.rs", "fn f(_: crate::config::TopicConfig) {}"),
        ("src/types/x.rs", "use crate::error::Error;"),
        ("src/log/x.rs", "unsafe { f() }"),
        ("src/log/x.rs", "let _ = std::fs::read(p);"),
        ("src/log/x.rs", "std::thread::spawn(f);"),
        ("src/protocol/x.rs", "let t = SystemTime::now();"),
        ("src/protocol/x.rs", "let t = \"\u{e9}\";"),
        ("src/unheard_of.rs", ""),
    ] {
        assert!(!faults(path, text).is_empty(), "{path}: {text}");
    }
    for (path, text) in [
        ("src/store/x.rs", "use crate::log::Log; // crate::store and unsafe in a comment"),
        ("src/storage/x.rs", "unsafe { f() }"),
        ("src/log/x.rs", "use std::fs_of_mine; let x = \"unsafe\";"),
    ] {
        assert!(faults(path, text).is_empty(), "{path}: {text}");
    }
}
