//! Children of a test: the same test in another process, which it kills.
#![allow(dead_code, reason = "each test kills in its own way")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const DIRECTORY: &str = "ONCELOG_KILL_DIR";
const ROUND: &str = "ONCELOG_KILL_ROUND";

/// Whether this process is a child.
pub(crate) fn is_child() -> bool {
    std::env::var_os(DIRECTORY).is_some()
}

/// Where a child works, and which child it is.
pub(crate) fn task() -> (PathBuf, u64) {
    let round = std::env::var(ROUND).unwrap().parse().unwrap();
    (std::env::var_os(DIRECTORY).unwrap().into(), round)
}

/// Starts a child, and waits until it says that it is ready.
pub(crate) fn start(test: &str, directory: &Path, round: u64) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(DIRECTORY, directory)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It stays open: the child may say more.
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("ready")), "round {round}");
    child
}

/// Kills it after that time, to the microsecond.
pub(crate) fn kill_after(mut child: Child, lifetime: Duration) {
    let started = Instant::now();
    while started.elapsed() < lifetime {
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
