//! Compares what was told with what is there.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use oncelog::{Isolation, Offset, ReadOptions, Store, TransactionOutcome};

use super::ledger::{End, Told, parse, shape, value};
use super::{LONG, PARTITIONS, World};

pub(crate) fn all_of(store: &Store, isolation: Isolation) -> BTreeMap<(u32, u64), Vec<u8>> {
    let mut found = BTreeMap::new();
    for number in 0..PARTITIONS {
        let partition = store.partition("t", number).unwrap();
        let started = Instant::now();
        while partition.last_stable_offset() < partition.log_end_offset() {
            assert!(started.elapsed() < LONG, "the LSO stands still");
            thread::sleep(Duration::from_millis(5));
        }
        let mut next = Offset(0);
        while next < partition.high_watermark() {
            let records = partition.read(next, ReadOptions::new().isolation(isolation)).unwrap();
            for one in &records {
                let value = one.value().unwrap();
                found.insert((number, one.offset().0), value.to_vec());
                if let Some((who, nth)) = parse(value) {
                    check_shape(who, nth, &one);
                }
            }
            if records.next_offset() == next {
                thread::sleep(Duration::from_millis(1));
            }
            assert!(started.elapsed() < LONG * 2, "a read that does not go on");
            next = records.next_offset();
        }
    }
    found
}

pub(crate) fn check_shape(who: u64, nth: u64, one: &oncelog::RecordView<'_>) {
    assert_eq!(one.value().unwrap(), value(who, nth), "bytes of {who}.{nth}");
    if one.headers().count() > 0 {
        let shape = shape(who, nth);
        assert_eq!(one.key(), shape.key.as_deref());
        let headers: Vec<_> =
            one.headers().map(|(name, value)| (name.to_string(), value.to_vec())).collect();
        assert_eq!(headers, shape.headers);
    }
}

impl World {
    pub(crate) fn judge(&self, store: &Store) -> Vec<String> {
        let plain = all_of(store, Isolation::ReadUncommitted);
        let committed = all_of(store, Isolation::ReadCommitted);
        let mut faults = std::mem::take(&mut *self.ledger.faults.lock().unwrap());
        let places = |found: &BTreeMap<(u32, u64), Vec<u8>>| {
            let mut places: BTreeMap<(u64, u64), Vec<(u32, u64)>> = BTreeMap::new();
            for (at, value) in found {
                if let Some(name) = parse(value) {
                    places.entry(name).or_default().push(*at);
                }
            }
            places
        };
        let (in_log, in_committed) = (places(&plain), places(&committed));
        let attempts = self.ledger.attempts.lock().unwrap().clone();
        let wholes = self.ledger.wholes.lock().unwrap().clone();
        let cuts = std::mem::take(&mut *self.ledger.cuts.lock().unwrap());
        let empty = Vec::new();
        let mut of_wholes: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
        let mut who_sent = BTreeMap::new();
        let mut order: BTreeMap<(u64, u32), BTreeMap<u64, u64>> = BTreeMap::new();
        for one in &attempts {
            let name = (one.who, one.nth);
            let at = in_log.get(&name).unwrap_or(&empty);
            let seen = in_committed.get(&name).unwrap_or(&empty);
            if at.len() > 1 && !one.unnumbered {
                faults.push(format!("twice: {one:?} at {at:?}"));
            }
            for place in at {
                order.entry((one.who, place.0)).or_default().entry(one.nth).or_insert(place.1);
            }
            if let Some(whole) = one.transaction {
                let entry = of_wholes.entry(whole).or_default();
                entry.0 += 1;
                who_sent.insert(whole, one.who);
                entry.1 += usize::from(!seen.is_empty());
                continue;
            }
            if at.len() != seen.len() {
                faults.push(format!("{one:?}: {at:?} uncommitted, {seen:?} committed"));
            }
            match &one.told {
                Told::At(number, offset) if !at.contains(&(*number, *offset)) => {
                    faults.push(format!("lost: {one:?}, it is at {at:?}"));
                }
                Told::No(_) if !at.is_empty() => {
                    faults.push(format!("said not to be written: {one:?} at {at:?}"));
                }
                // What was not acknowledged may go with a leader, or the power.
                Told::Yes(_)
                    if at.is_empty()
                        && self.disks.len() == 1
                        && !self.ledger.died.load(Ordering::SeqCst) =>
                {
                    faults.push(format!("said to be written: {one:?}"));
                }
                _ => {}
            }
        }
        for ((who, number), places) in order {
            let offsets: Vec<_> = places.values().collect();
            if !offsets.is_sorted() {
                faults.push(format!("order of {who} in {number}: {places:?}"));
            }
        }
        for (number, (count, seen)) in of_wholes {
            let whole = &wholes[&number];
            let told = match whole.end {
                End::Committed | End::Said(_) => Some(true),
                End::Aborted(_) => Some(false),
                _ => None,
            };
            if seen != 0 && seen != count {
                faults.push(format!("torn: {whole:?}: {seen} of {count}"));
            } else if told.is_some_and(|told| told != (seen > 0)) {
                faults.push(format!("{whole:?}, and {seen} of {count} are seen"));
            }
            for cut in &cuts {
                let shown = cut.get(&who_sent[&number]).copied().unwrap_or(0);
                if shown != 0 && (shown != count || seen == 0) {
                    faults.push(format!("a snapshot shows {shown} of {count} of {whole:?}"));
                }
            }
            if let Some(id) = whole.id {
                match store.transaction_outcome(id) {
                    Ok(TransactionOutcome::Aborted) if seen > 0 => {
                        faults.push(format!("{whole:?} is called aborted, and seen"));
                    }
                    Ok(TransactionOutcome::Open) => {
                        faults.push(format!("{whole:?} is called open"));
                    }
                    _ => {}
                }
            }
        }
        for (what, seen, kept) in [
            ("read", &self.ledger.seen, &plain),
            ("read committed", &self.ledger.seen_committed, &committed),
        ] {
            for (at, value) in &*seen.lock().unwrap() {
                if kept.get(at) != Some(value) {
                    let text = String::from_utf8_lossy(&value[..value.len().min(20)]).to_string();
                    faults.push(format!("{what} and gone: {at:?} {text}"));
                }
            }
        }
        self.judge_named(&plain, &mut faults);
        faults
    }

    fn judge_named(&self, plain: &BTreeMap<(u32, u64), Vec<u8>>, faults: &mut Vec<String>) {
        let mut next: BTreeMap<(String, u32), u64> = BTreeMap::new();
        for ((number, offset), value) in plain {
            let text = String::from_utf8_lossy(value);
            let parts: Vec<_> = text.split('/').collect();
            if let [name, of, nth] = parts[..] {
                let nth: u64 = nth.parse().unwrap();
                let expected = next.entry((name.into(), *number)).or_insert(0);
                if *expected != nth || of != number.to_string() {
                    faults.push(format!("{name}: {nth} for {expected} at {number}@{offset}"));
                }
                *expected = nth + 1;
            }
        }
        for ((name, number), known) in &*self.ledger.named.lock().unwrap() {
            let have = next.get(&(name.clone(), *number)).copied().unwrap_or(0);
            if have < *known {
                faults.push(format!("{name} in {number}: {have} of {known}"));
            }
        }
    }
}
