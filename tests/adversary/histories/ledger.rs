//! What every thread did, and what it was told.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use oncelog::{Error, Record, TransactionId, Written};

/// So much later than it was to, no call returns on any machine: it waited for something else.
const LATE: Duration = Duration::from_secs(20);

/// What a thread was told of a record.
#[derive(Clone, Debug)]
#[allow(dead_code, reason = "an error is there to be printed")]
pub(crate) enum Told {
    At(u32, u64),
    /// `Written::No`
    No(String),
    /// `Written::Yes`
    Yes(String),
    Unknown(String),
    /// The process died before.
    Nothing,
}

#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    /// Whose, and which of his.
    pub(crate) who: u64,
    pub(crate) nth: u64,
    pub(crate) told: Told,
    /// It may be there twice: nobody counts.
    pub(crate) unnumbered: bool,
    pub(crate) transaction: Option<u64>,
}

#[derive(Clone, Debug)]
#[allow(dead_code, reason = "an error is there to be printed")]
pub(crate) enum End {
    Open,
    Committed,
    /// By an error.
    Said(String),
    Aborted(String),
    Unknown(String),
}

#[derive(Clone, Debug)]
pub(crate) struct Whole {
    pub(crate) id: Option<TransactionId>,
    pub(crate) end: End,
}

#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) attempts: Mutex<Vec<Attempt>>,
    pub(crate) wholes: Mutex<BTreeMap<u64, Whole>>,
    pub(crate) faults: Mutex<Vec<String>>,
    pub(crate) next_whole: AtomicU64,
    pub(crate) next_who: AtomicU64,
    pub(crate) dead: AtomicBool,
    pub(crate) over: AtomicBool,
    pub(crate) died: AtomicBool,
    /// Offsets at which committed readers saw values.
    pub(crate) seen: Mutex<HashMap<(u32, u64), Vec<u8>>>,
    pub(crate) seen_committed: Mutex<HashMap<(u32, u64), Vec<u8>>>,
    pub(crate) named: Mutex<BTreeMap<(String, u32), u64>>,
    /// What snapshots showed: how many records of whom.
    pub(crate) cuts: Mutex<Vec<BTreeMap<u64, usize>>>,
}

pub(crate) fn text(error: &Error) -> String {
    format!("{error:?}")
}

pub(crate) fn told_error(error: &Error) -> Told {
    match error.written() {
        Written::No => Told::No(text(error)),
        Written::Yes => Told::Yes(text(error)),
        Written::Unknown => Told::Unknown(text(error)),
    }
}

pub(crate) fn value(who: u64, nth: u64) -> Vec<u8> {
    let mut value = format!("{who}.{nth}.").into_bytes();
    let pad = (who * 31 + nth * 17) % 97;
    value.extend((0..pad).map(|at| u8::try_from(b'a' as u64 + at % 26).unwrap()));
    if nth % 211 == 5 {
        value.extend(std::iter::repeat_n(b'z', 9000));
    }
    value
}

pub(crate) struct Shape {
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
}

pub(crate) fn shape(who: u64, nth: u64) -> Shape {
    let key = match (who + nth) % 3 {
        0 => None,
        1 => Some(Vec::new()),
        _ => Some(format!("k{nth}").into_bytes()),
    };
    let headers = match nth % 4 {
        0 => vec![],
        1 => vec![(String::new(), vec![])],
        2 => vec![("h".into(), b"x".to_vec()), ("h".into(), vec![])],
        _ => vec![("h".into(), vec![0; 300])],
    };
    Shape { key, headers }
}

pub(crate) fn record<'a>(value: &'a [u8], shape: &'a Shape) -> Record<'a> {
    let mut record = Record::new(value);
    if let Some(key) = &shape.key {
        record = record.key(key);
    }
    for (name, value) in &shape.headers {
        record = record.header(name, value);
    }
    record
}

pub(crate) fn parse(value: &[u8]) -> Option<(u64, u64)> {
    let text = std::str::from_utf8(value).ok()?;
    let mut parts = text.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

impl Ledger {
    pub(crate) fn note(
        &self,
        who: u64,
        nth: u64,
        told: Told,
        unnumbered: bool,
        transaction: Option<u64>,
    ) {
        let told = if self.dead.load(Ordering::SeqCst) { Told::Nothing } else { told };
        self.attempts.lock().unwrap().push(Attempt { who, nth, told, unnumbered, transaction });
    }

    pub(crate) fn fault(&self, what: String) {
        if !self.dead.load(Ordering::SeqCst) {
            self.faults.lock().unwrap().push(what);
        }
    }

    pub(crate) fn who(&self) -> u64 {
        self.next_who.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn timed<T>(&self, what: &str, limit: Duration, call: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let outcome = call();
        let took = started.elapsed();
        if took > limit + LATE {
            self.faults.lock().unwrap().push(format!("{what} took {took:?} of {limit:?}"));
        }
        outcome
    }
}
