//! What an observer outside of a store knows of it, and what he finds against that.

use std::collections::{BTreeMap, BTreeSet};

use oncelog::{Error, Isolation, Partition, ReadOptions, Store};

/// One that comes and goes.
pub(crate) const FLEETING: &str = "fleeting";
pub(crate) const SOURCE: &str = "source";

pub(crate) const COPY: &str = "the copy";

pub(crate) type Place = (String, u32);

/// How a transaction's end was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Committed,
    Aborted,
    Nothing,
}

#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) values: Vec<(Place, String)>,
    pub(crate) told: Told,
}

/// What an observer outside knows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    /// Everything that was ever sent.
    pub(crate) known: BTreeSet<String>,
    /// Acknowledged, or seen by somebody: it stays.
    pub(crate) kept: BTreeMap<Place, BTreeMap<u64, String>>,
    pub(crate) sent: Vec<Sent>,
    /// Up to where records were deleted, for sure and at most.
    pub(crate) deleted: u64,
    pub(crate) deleted_max: u64,
    /// What the named producer was told is there.
    pub(crate) named: u64,
    /// The last acknowledged commit of a group.
    pub(crate) positions: BTreeMap<(String, Place), u64>,
    /// What the reader has been given.
    pub(crate) delivered: BTreeMap<Place, BTreeSet<u64>>,
}

pub(crate) fn text_of(value: Option<&[u8]>) -> String {
    String::from_utf8(value.unwrap().to_vec()).unwrap()
}

pub(crate) fn read_all(
    partition: &Partition,
    isolation: Isolation,
) -> Result<Vec<(u64, String)>, Error> {
    let (mut found, mut offset) = (Vec::new(), partition.log_start_offset());
    loop {
        let options = ReadOptions::new().isolation(isolation).max_bytes(2000);
        let records = partition.read(offset, options)?;
        found.extend(records.iter().map(|r| (r.offset().0, text_of(r.value()))));
        if records.next_offset() == offset {
            return Ok(found);
        }
        offset = records.next_offset();
    }
}

/// All partitions of the topics whose records stay.
pub(crate) fn places(store: &Store) -> Vec<Place> {
    let topics = store.topics().into_iter().filter(|topic| topic.name != FLEETING);
    topics.flat_map(|topic| (0..topic.partitions).map(move |at| (topic.name.clone(), at))).collect()
}

impl Ledger {
    pub(crate) fn keep(&mut self, place: &Place, at: u64, value: &str) {
        if place.0 == FLEETING {
            return;
        }
        let known = self.kept.entry(place.clone()).or_default().insert(at, value.to_owned());
        assert!(known.is_none_or(|known| known == value), "{place:?} {at}: another is there");
    }

    pub(crate) fn start(&self, place: &Place) -> u64 {
        if place.0 == "trim" { self.deleted_max } else { 0 }
    }

    /// What is in a store, against what was acknowledged.
    pub(crate) fn judge(&self, store: &Store, what: &str) {
        let mut all = BTreeMap::new();
        let mut names = places(store);
        // A topic that was deleted while it was copied is in the copy, and damaged.
        if let Some(topic) = store.topic(FLEETING).ok().filter(|_| what != COPY) {
            names.extend((0..topic.partitions).map(|at| (FLEETING.to_owned(), at)));
        }
        for place in &names {
            let partition = store.partition(&place.0, place.1).unwrap();
            let stored = read_all(&partition, Isolation::ReadUncommitted).unwrap();
            for (at, value) in &stored {
                let is_named = value.starts_with(SOURCE);
                assert!(is_named || self.known.contains(value), "{what}: {value} was not sent");
                let before = all.insert(value.clone(), (place.clone(), *at));
                assert_eq!(before, None, "{what}: {value} is there twice, again at {place:?} {at}");
            }
            let shown = read_all(&partition, Isolation::ReadCommitted).unwrap();
            let shown: BTreeMap<_, _> = shown.into_iter().collect();
            let (start, end) = (partition.log_start_offset().0, partition.high_watermark().0);
            assert!(start <= self.start(place), "{what}: {place:?} begins at {start}");
            assert_eq!(partition.last_stable_offset().0, end, "{what}: {place:?}: unsettled");
            for (at, value) in self.kept.get(place).into_iter().flatten() {
                let found = shown.get(at);
                assert!(
                    *at < start || found == Some(value),
                    "{what}: {place:?} {at} is lost: {value}, but {found:?}; {start}..{end}"
                );
            }
            self.judge_transactions(place, &shown, start, what);
        }
        self.judge_source(&all, what);
    }

    pub(crate) fn judge_transactions(
        &self,
        place: &Place,
        shown: &BTreeMap<u64, String>,
        start: u64,
        what: &str,
    ) {
        let shown: BTreeSet<_> = shown.values().collect();
        for sent in &self.sent {
            let here = sent.values.iter().filter(|(at, _)| at == place);
            for (_, value) in here {
                let seen = shown.contains(value);
                assert!(!seen || sent.told != Told::Aborted, "{what}: aborted, and shown: {value}");
                let may_be_gone = start > 0 || place.0 == FLEETING;
                let is_there = seen || may_be_gone || sent.told != Told::Committed;
                assert!(is_there, "{what}: {place:?} committed, and lost: {value}");
            }
        }
    }

    /// Each transaction is seen with all of its partitions or with none.
    pub(crate) fn judge_atomic(&self, store: &Store, what: &str) {
        let mut shown = BTreeSet::new();
        for place in places(store) {
            let partition = store.partition(&place.0, place.1).unwrap();
            let found = read_all(&partition, Isolation::ReadCommitted).unwrap();
            shown.extend(found.into_iter().map(|(_, value)| value));
        }
        for sent in &self.sent {
            let stays = |place: &Place| place.0 != FLEETING && place.0 != "trim";
            let values = sent.values.iter().filter(|(place, _)| stays(place));
            let seen: BTreeSet<_> = values.map(|(_, value)| shown.contains(value)).collect();
            assert!(seen.len() < 2, "{what}: torn: {sent:?}");
        }
    }

    pub(crate) fn judge_source(&self, all: &BTreeMap<String, (Place, u64)>, what: &str) {
        let named = all.iter().filter_map(|(value, (_, at))| {
            Some((*at, value.strip_prefix(SOURCE)?.parse::<u64>().unwrap()))
        });
        let named: BTreeMap<_, _> = named.collect();
        let found: Vec<_> = named.values().copied().collect();
        let expected: Vec<_> = (0..found.len() as u64).collect();
        assert_eq!(found, expected, "{what}: the source's records");
        assert!(found.len() as u64 >= self.named, "{what}: the source lost {}", self.named);
    }

    pub(crate) fn judge_groups(&self, store: &Store, what: &str) {
        for ((group, place), position) in &self.positions {
            let consumer = store.consumer().group(group).build().unwrap();
            let found = consumer.committed(&[(place.0.as_str(), place.1)]).unwrap();
            let found = found.values().next().map(|held| held.offset.0);
            assert!(
                found >= Some(*position),
                "{what}: {group} {place:?} went back from {position} to {found:?}"
            );
        }
    }

    /// What lies before the reader's position was given to it, or is not to be.
    pub(crate) fn judge_delivered(&self, store: &Store) {
        for (place, delivered) in &self.delivered {
            if place.0 == "trim" {
                continue;
            }
            let partition = store.partition(&place.0, place.1).unwrap();
            let end = delivered.last().copied().unwrap_or(0);
            for (at, value) in read_all(&partition, Isolation::ReadCommitted).unwrap() {
                assert!(at > end || delivered.contains(&at), "{place:?} {at} skipped: {value}");
            }
        }
    }
}
