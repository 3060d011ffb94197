//! A small harness: every figure stands beside the limit that was measured in the same run.
//!
//! A *turn* measures the limit and then ours, so both meet the same weather; a line shows the medians
//! of all turns, the range that they were in, and the median of the turns' ratios. Where the two are close, a turn
//! goes from one to the other every few milliseconds, faster than the weather changes.
//!
//! `cargo bench` measures, `cargo bench -- NAME` only the lines whose name holds `NAME`,
//! `cargo bench -- --list` shows the names, `cargo bench -- --turns 9` changes the number of turns, and
//! `cargo bench -- --test` runs everything once on tiny amounts, to see that it works. Data goes below
//! `target/bench-data`, or below `ONCELOG_BENCH_DIR`, and is removed at the end.

#![allow(dead_code, reason = "each bench uses its part of the harness")]
#![allow(clippy::print_stdout, reason = "a bench is read on the screen")]

pub(crate) mod bare;
pub(crate) mod bare_group;
pub(crate) mod counting;
pub(crate) mod handover;
pub(crate) mod histogram;
pub(crate) mod ours;
pub(crate) mod work;

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// A work that is done by slices of a few milliseconds; gives how many units a slice was.
pub(crate) type Slices = Box<dyn FnMut() -> Outcome<u64>>;

/// Slices of each work in a turn.
const SLICES: usize = 200;

/// Fewer turns than this say little.
const TURNS_MIN: usize = 5;

/// What a figure counts, which also says whether more of it is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Records a second.
    Records,
    /// Bytes a second.
    Bytes,
    /// Seconds.
    Time,
    /// A plain number.
    Count,
    /// Bytes.
    Size,
}

impl Unit {
    fn show(self, figure: f64) -> String {
        match self {
            Self::Records => format!("{}/s", thousands(figure)),
            Self::Bytes => format!("{:.2} GB/s", figure / 1e9),
            Self::Time if figure < 1e-6 => format!("{:.0} ns", figure * 1e9),
            Self::Time if figure < 1e-3 => format!("{:.2} us", figure * 1e6),
            Self::Time => format!("{:.2} ms", figure * 1e3),
            Self::Count => format!("{figure:.4}"),
            Self::Size => format!("{:.1} KiB", figure / 1024.0),
        }
    }
}

/// What a line is to reach.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// Ours divided by the limit, at least.
    RatioMin(f64),
    /// Ours divided by the limit, at most.
    RatioMax(f64),
    /// Ours, at least.
    Min(f64),
    /// Ours, at most.
    Max(f64),
    /// Both: the ratio, and ours, at least.
    RatioAndMin(f64, f64),
    /// None: the line explains another one.
    None,
}

impl Goal {
    fn reached(self, ours: f64, ratio: Option<f64>) -> Option<bool> {
        let ratio_at_least = |least: f64| ratio.is_some_and(|ratio| ratio >= least);
        match self {
            Self::RatioMin(least) => Some(ratio_at_least(least)),
            Self::RatioMax(most) => Some(ratio.is_some_and(|ratio| ratio <= most)),
            Self::Min(least) => Some(ours >= least),
            Self::Max(most) => Some(ours <= most),
            Self::RatioAndMin(least, floor) => Some(ratio_at_least(least) && ours >= floor),
            Self::None => None,
        }
    }

    fn show(self, unit: Unit) -> String {
        match self {
            Self::RatioMin(least) => format!("ratio >= {least}"),
            Self::RatioMax(most) => format!("ratio <= {most}"),
            Self::Min(least) => format!(">= {}", unit.show(least)),
            Self::Max(most) => format!("<= {}", unit.show(most)),
            Self::RatioAndMin(least, floor) => format!("ratio >= {least}, >= {}", unit.show(floor)),
            Self::None => "-".to_owned(),
        }
    }
}

/// What a line is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line<'a> {
    pub(crate) name: &'a str,
    /// What an acknowledged record of ours survives.
    pub(crate) durability: &'a str,
    pub(crate) unit: Unit,
    pub(crate) goal: Goal,
    /// What the limit is.
    pub(crate) limit: &'a str,
}

/// One run of one bench file.
#[derive(Debug)]
pub(crate) struct Bench {
    /// Tiny amounts, one turn.
    pub(crate) smoke: bool,
    turns: usize,
    list: bool,
    filter: Option<String>,
    directory: Directory,
    printed_head: bool,
    missed: usize,
}

impl Bench {
    /// Reads the arguments and makes the directory. `theme` is the bench's name.
    pub(crate) fn new(theme: &str) -> Outcome<Self> {
        let mut bench = Self {
            smoke: false,
            turns: TURNS_MIN,
            list: false,
            filter: None,
            directory: Directory::new(theme)?,
            printed_head: false,
            missed: 0,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--test" => bench.smoke = true,
                "--list" => bench.list = true,
                "--turns" => {
                    let turns = arguments.next().ok_or("--turns needs a number")?;
                    bench.turns = turns.parse::<usize>()?.max(TURNS_MIN);
                }
                // What cargo and libtest pass along.
                flag if flag.starts_with('-') => {}
                name => bench.filter = Some(name.to_owned()),
            }
        }
        if bench.smoke {
            bench.turns = 1;
        }
        Ok(bench)
    }

    /// Whether a line of that name is asked for. Prints it if names are all that is asked for.
    pub(crate) fn wants(&self, name: &str) -> bool {
        let wanted = self.filter.as_deref().is_none_or(|filter| name.contains(filter));
        if wanted && self.list {
            println!("{name}: benchmark");
        }
        wanted && !self.list
    }

    /// An amount for a real run, and one that only shows that the code works.
    pub(crate) fn amount<T>(&self, real: T, smoke: T) -> T {
        if self.smoke { smoke } else { real }
    }

    /// Where data goes.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory.path
    }

    /// An empty directory of that name; what was there is removed.
    pub(crate) fn fresh(&self, name: &str) -> Outcome<PathBuf> {
        let path = self.directory.path.join(name);
        remove(&path)?;
        std::fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// Measures a line: the limit and ours in turns.
    pub(crate) fn compare(
        &mut self,
        line: &Line<'_>,
        mut limit: impl FnMut(&Self) -> Outcome<f64>,
        mut ours: impl FnMut(&Self) -> Outcome<f64>,
    ) -> Outcome<()> {
        if !self.wants(line.name) {
            return Ok(());
        }
        let mut limits = Vec::new();
        let mut figures = Vec::new();
        for _ in 0..self.turns {
            limits.push(limit(self)?);
            figures.push(ours(self)?);
        }
        let mut ratios: Vec<f64> =
            figures.iter().zip(&limits).map(|(figure, limit)| figure / limit).collect();
        self.print(line, &mut figures, Some((&mut limits, &mut ratios)));
        Ok(())
    }

    /// As [`Bench::compare`], the limit and ours by turns within a turn.
    pub(crate) fn compare_by_slices(
        &mut self,
        line: &Line<'_>,
        mut limit: impl FnMut(&Self) -> Outcome<Slices>,
        mut ours: impl FnMut(&Self) -> Outcome<Slices>,
    ) -> Outcome<()> {
        if !self.wants(line.name) {
            return Ok(());
        }
        let (mut limits, mut figures, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.turns {
            let mut works = [limit(self)?, ours(self)?];
            let (mut units, mut times) = ([0, 0], [Duration::ZERO; 2]);
            for slice in 0..self.amount(SLICES, 2) {
                // Neither is always the one that comes first.
                for work in [slice % 2, 1 - slice % 2] {
                    let started = Instant::now();
                    units[work] += works[work]()?;
                    times[work] += started.elapsed();
                }
            }
            limits.push(rate(units[0], times[0]));
            figures.push(rate(units[1], times[1]));
            ratios.push(rate(units[1], times[1]) / rate(units[0], times[0]));
        }
        self.print(line, &mut figures, Some((&mut limits, &mut ratios)));
        Ok(())
    }

    /// Measures a line that has no limit beside it.
    pub(crate) fn measure(
        &mut self,
        line: &Line<'_>,
        mut ours: impl FnMut(&Self) -> Outcome<f64>,
    ) -> Outcome<()> {
        if !self.wants(line.name) {
            return Ok(());
        }
        let mut figures = Vec::new();
        for _ in 0..self.turns {
            figures.push(ours(self)?);
        }
        self.print(line, &mut figures, None);
        Ok(())
    }

    /// A remark below the last line.
    pub(crate) fn note(&self, text: &str) {
        println!("| | {text} | | | | | |");
    }

    /// Says how it ended. A goal that was missed does not fail the run: it stays in the table.
    pub(crate) fn finish(self) {
        if self.printed_head && !self.smoke {
            println!("\nMedians of {} turns; {} goals missed.\n", self.turns, self.missed);
        }
    }

    fn print(
        &mut self,
        line: &Line<'_>,
        figures: &mut [f64],
        beside: Option<(&mut [f64], &mut [f64])>,
    ) {
        if !self.printed_head {
            self.printed_head = true;
            let disk = if bare::in_memory(self.directory()) {
                "tmpfs, so nothing is durable"
            } else {
                "disk"
            };
            println!("\n## {} ({disk})\n", self.directory.theme);
            println!(
                "| work | ours (range) | limit (range) | ratio | goal | reached | durability |"
            );
            println!("|---|---|---|---|---|---|---|");
        }
        let shown = spread(line.unit, figures);
        let ours = median(figures);
        let (limit, ratio) = match beside {
            Some((limits, ratios)) => {
                (format!("{}: {}", line.limit, spread(line.unit, limits)), Some(median(ratios)))
            }
            None => (line.limit.to_owned(), None),
        };
        let reached = match line.goal.reached(ours, ratio) {
            _ if self.smoke => "smoke",
            Some(true) => "yes",
            Some(false) => {
                self.missed += 1;
                "NO"
            }
            None => "-",
        };
        let ratio = ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
        let goal = line.goal.show(line.unit);
        println!(
            "| {} | {shown} | {limit} | {ratio} | {goal} | {reached} | {} |",
            line.name, line.durability
        );
    }
}

/// The bench's own directory, removed with it.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    theme: String,
}

impl Directory {
    fn new(theme: &str) -> Outcome<Self> {
        let base = match std::env::var_os("ONCELOG_BENCH_DIR") {
            Some(chosen) => PathBuf::from(chosen),
            // Cargo names a directory inside the target directory; the data lies beside it.
            None => Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench-data"),
        };
        let path = base.join(format!("{theme}-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self { path, theme: theme.to_owned() })
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // The run is over: what cannot be removed is left for `cargo clean`.
        let _ = remove(&self.path);
    }
}

/// Removes a directory with what is in it, if it is there.
pub(crate) fn remove(path: &Path) -> Outcome<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// The middle one, or the mean of the two in the middle.
pub(crate) fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    if figures.is_empty() {
        f64::NAN
    } else if figures.len().is_multiple_of(2) {
        f64::midpoint(figures[middle - 1], figures[middle])
    } else {
        figures[middle]
    }
}

/// How many of something a second.
pub(crate) fn rate(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}

/// Runs `work` and gives how often a second it did one of `count`.
pub(crate) fn timed(count: u64, work: impl FnOnce() -> Outcome<()>) -> Outcome<f64> {
    let started = Instant::now();
    work()?;
    Ok(rate(count, started.elapsed()))
}

/// How often a second `work` is done by all threads together.
pub(crate) fn repeated_by(
    threads: usize,
    span: Duration,
    work: impl Fn(&Arc<AtomicBool>) -> Outcome<()> + Sync,
) -> Outcome<f64> {
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let run = || {
        let called = Arc::new(AtomicBool::new(false));
        while !stop.load(Ordering::Relaxed) {
            work(&called)?;
            count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        thread::sleep(span / 10);
        let (before, started) = (count.load(Ordering::Relaxed), Instant::now());
        thread::sleep(span);
        let (after, elapsed) = (count.load(Ordering::Relaxed), started.elapsed());
        stop.store(true, Ordering::Relaxed);
        let ended: Outcome<()> = handles
            .into_iter()
            .try_for_each(|handle| handle.join().map_err(|_| io::Error::other("a thread died"))?);
        ended.map(|()| rate(after - before, elapsed))
    })
}

/// Bytes that do not repeat: a fixed sequence of xorshift.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Looks at every byte, as cheaply as that can be done.
#[inline]
pub(crate) fn touch(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let sum = words.iter().fold(0, |sum, word| sum ^ u64::from_le_bytes(*word));
    rest.iter().fold(sum, |sum, byte| sum ^ u64::from(*byte))
}

fn spread(unit: Unit, figures: &mut [f64]) -> String {
    let middle = unit.show(median(figures));
    match (figures.first(), figures.last()) {
        (Some(first), Some(last)) if figures.len() > 1 => {
            format!("{middle} ({} .. {})", unit.show(*first), unit.show(*last))
        }
        _ => middle,
    }
}

fn thousands(figure: f64) -> String {
    match figure {
        big if big >= 1e6 => format!("{:.2} M", big / 1e6),
        big if big >= 1e4 => format!("{:.1} k", big / 1e3),
        small => format!("{small:.0}"),
    }
}
