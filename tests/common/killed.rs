//! Children of a test: the same test in another process, which it kills.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use oncelog::Flush;

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

/// What starts a child: the test `test` of `module`, its `module_path!()`.
pub(crate) fn command(module: &str, test: &str, directory: &Path, round: u64) -> Command {
    let (_crate, module) = module.split_once("::").unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("{module}::{test}"), "--nocapture"]);
    command.env(DIRECTORY, directory).env(ROUND, round.to_string()).stdout(Stdio::piped());
    command
}

/// Starts a child, and waits until it says that it is ready.
pub(crate) fn start(command: &mut Command) -> Child {
    let mut child = command.spawn().unwrap();
    // It stays open: the child may say more.
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("ready")), "the child did not open");
    child
}

/// Runs the loop for both of the levels that promise most and least, side by side: each mostly waits for its disks.
pub(crate) fn at_both_levels(seed: u64, kill_loop: impl Fn(Flush, u64) + Sync) {
    let kill_loop = &kill_loop;
    std::thread::scope(|scope| {
        for (seed, flush) in [(seed, Flush::OnAck), (seed + 1, Flush::Os)] {
            scope.spawn(move || kill_loop(flush, seed));
        }
    });
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
