//! All producers of a partition, found by id, in order of their last append.
//!
//! A list through the slots of one vector, so that an append costs the same with one producer and with 100,000, and
//! allocates nothing for a producer that is known.
//!
//! Invariant: a producer is in the list if it has no open transaction. So the one to forget next is always in front.

use std::collections::HashMap;

use crate::types::ProducerId;

use super::entry::Entry;

const NONE: u32 = u32::MAX;

#[derive(Clone, Debug)]
struct Slot {
    entry: Entry,
    older: u32,
    newer: u32,
}

// The limit of memory that `states` states is made of this; the map takes at most 34 bytes more.
const _: () = assert!(size_of::<Slot>() <= 232);

#[derive(Clone, Debug)]
pub(super) struct Producers {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Never iterated: its order differs from run to run.
    places: HashMap<ProducerId, u32>,
    oldest: u32,
    newest: u32,
}

impl Producers {
    pub(super) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            places: HashMap::new(),
            oldest: NONE,
            newest: NONE,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn get(&self, id: ProducerId) -> Option<&Entry> {
        self.places.get(&id).map(|&at| &self.slots[at as usize].entry)
    }

    /// Adds a producer as the newest.
    pub(super) fn insert(&mut self, entry: Entry) {
        let id = entry.id;
        let slot = Slot { entry, older: NONE, newer: NONE };
        let at = if let Some(at) = self.free.pop() {
            self.slots[at as usize] = slot;
            at
        } else {
            self.slots.push(slot);
            u32::try_from(self.slots.len() - 1).expect("the limit of producers lies far below")
        };
        assert!(self.places.insert(id, at).is_none(), "a producer has one entry");
        self.link(at);
    }

    /// Changes a producer, which becomes the newest. `None` if it is not known.
    pub(super) fn touch<R>(
        &mut self,
        id: ProducerId,
        change: impl FnOnce(&mut Entry) -> R,
    ) -> Option<R> {
        let at = *self.places.get(&id)?;
        if at == self.newest {
            let outcome = change(&mut self.slots[at as usize].entry);
            if self.slots[at as usize].entry.open.is_some() {
                self.unlink(at);
            }
            return Some(outcome);
        }
        if self.slots[at as usize].entry.open.is_none() {
            self.unlink(at);
        }
        let outcome = change(&mut self.slots[at as usize].entry);
        self.link(at);
        Some(outcome)
    }

    /// Forgets the producer without an open transaction that has not appended for longest.
    pub(super) fn remove_oldest(&mut self) -> Option<ProducerId> {
        let at = self.oldest;
        let id = self.slots.get(at as usize)?.entry.id;
        self.unlink(at);
        self.places.remove(&id);
        self.free.push(at);
        Some(id)
    }

    /// Producers without an open transaction, from the one that has not appended for longest.
    pub(super) fn idle(&self) -> impl Iterator<Item = &Entry> {
        let mut at = self.oldest;
        std::iter::from_fn(move || {
            let slot = self.slots.get(at as usize)?;
            at = slot.newer;
            Some(&slot.entry)
        })
    }

    /// Puts the slot at the new end, unless its producer has a transaction open.
    fn link(&mut self, at: u32) {
        if self.slots[at as usize].entry.open.is_some() {
            return;
        }
        let slot = &mut self.slots[at as usize];
        (slot.older, slot.newer) = (self.newest, NONE);
        match self.slots.get_mut(self.newest as usize) {
            Some(before) => before.newer = at,
            None => self.oldest = at,
        }
        self.newest = at;
    }

    fn unlink(&mut self, at: u32) {
        let Slot { older, newer, .. } = self.slots[at as usize];
        match self.slots.get_mut(older as usize) {
            Some(before) => before.newer = newer,
            None => self.oldest = newer,
        }
        match self.slots.get_mut(newer as usize) {
            Some(behind) => behind.older = older,
            None => self.newest = older,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Offset, ProducerEpoch};

    fn producers(ids: &[u64]) -> Producers {
        let mut producers = Producers::new();
        for &id in ids {
            producers.insert(Entry::new(ProducerId(id), ProducerEpoch(0), 0));
        }
        producers
    }

    fn order(producers: &Producers) -> Vec<u64> {
        let forward: Vec<u64> = producers.idle().map(|entry| entry.id.0).collect();
        let mut backward = Vec::new();
        let mut at = producers.newest;
        while let Some(slot) = producers.slots.get(at as usize) {
            backward.insert(0, slot.entry.id.0);
            at = slot.older;
        }
        assert_eq!(forward, backward, "both directions agree");
        forward
    }

    #[test]
    fn the_one_that_appended_last_is_the_newest() {
        let mut producers = producers(&[1, 2, 3]);
        for (id, expected) in [(1, [2, 3, 1]), (1, [2, 3, 1]), (3, [2, 1, 3]), (2, [1, 3, 2])] {
            producers.touch(ProducerId(id), |_| ()).unwrap();
            assert_eq!(order(&producers), expected);
        }
        assert!(producers.touch(ProducerId(9), |_| ()).is_none());
    }

    #[test]
    fn one_with_an_open_transaction_is_not_in_line_until_it_ends() {
        let mut producers = producers(&[1, 2, 3]);
        for id in [3, 1] {
            producers.touch(ProducerId(id), |entry| entry.open = Some(Offset(id))).unwrap();
        }
        assert_eq!(order(&producers), [2]);
        producers.touch(ProducerId(1), |_| ()).unwrap();
        assert_eq!(producers.remove_oldest(), Some(ProducerId(2)));
        assert_eq!(producers.remove_oldest(), None);
        assert_eq!(producers.len(), 2);
        producers.touch(ProducerId(3), |entry| entry.open = None).unwrap();
        producers.insert(Entry::new(ProducerId(4), ProducerEpoch(0), 0));
        producers.touch(ProducerId(1), |entry| entry.open = None).unwrap();
        assert_eq!(order(&producers), [3, 4, 1]);
        assert_eq!(producers.slots.len(), 3, "the place of a forgotten one is used again");
    }
}
