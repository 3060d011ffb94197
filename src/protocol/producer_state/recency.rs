//! All producers of a partition, found by id, in order of their last append.
//!
//! A list through the places of one vector, so that an append costs the same with one producer and with 100,000, and
//! allocates nothing for a producer that is known.
//!
//! Invariant: a producer is in the list if it has no open transaction. So the one to forget next is always in front.

use crate::types::{Mix, ProducerId};
use std::collections::HashMap;

use super::entry::Entry;

const NONE: u32 = u32::MAX;

/// A place in the list. Kept apart from the entries: those of 100,000 producers fit into a processor's cache, so an
/// append does not wait for the memory of its neighbours.
#[derive(Clone, Copy, Debug)]
struct Link {
    older: u32,
    newer: u32,
}

// The limit of memory that `states` states is made of these; the map takes at most 34 bytes more.
const _: () = assert!(size_of::<Entry>() + size_of::<Link>() <= 232);

#[derive(Clone, Debug)]
pub(super) struct Producers {
    entries: Vec<Entry>,
    links: Vec<Link>,
    free: Vec<u32>,
    /// Never iterated: its order is no order.
    places: HashMap<ProducerId, u32, Mix>,
    oldest: u32,
    newest: u32,
}

impl Producers {
    pub(super) fn new() -> Self {
        Self {
            entries: Vec::new(),
            links: Vec::new(),
            free: Vec::new(),
            places: HashMap::default(),
            oldest: NONE,
            newest: NONE,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    #[inline]
    pub(super) fn get(&self, id: ProducerId) -> Option<&Entry> {
        self.place(id).map(|at| &self.entries[at as usize])
    }

    /// The producer without an open transaction that appended last.
    #[inline]
    pub(super) fn newest(&self) -> Option<&Entry> {
        self.entries.get(self.newest as usize)
    }

    #[inline]
    pub(super) fn newest_mut(&mut self) -> Option<&mut Entry> {
        self.entries.get_mut(self.newest as usize)
    }

    /// Who appended last is likely to append next: it is found without the map.
    #[inline]
    fn place(&self, id: ProducerId) -> Option<u32> {
        match self.entries.get(self.newest as usize) {
            Some(newest) if newest.id == id => Some(self.newest),
            _ => self.places.get(&id).copied(),
        }
    }

    /// Adds a producer as the newest.
    pub(super) fn insert(&mut self, entry: Entry) {
        let id = entry.id;
        let at = if let Some(at) = self.free.pop() {
            self.entries[at as usize] = entry;
            at
        } else {
            self.entries.push(entry);
            self.links.push(Link { older: NONE, newer: NONE });
            u32::try_from(self.entries.len() - 1).expect("the limit of producers lies far below")
        };
        assert!(self.places.insert(id, at).is_none(), "a producer has one entry");
        self.link(at);
    }

    /// Changes a producer, which becomes the newest. `None` if it is not known.
    #[inline]
    pub(super) fn touch<R>(
        &mut self,
        id: ProducerId,
        change: impl FnOnce(&mut Entry) -> R,
    ) -> Option<R> {
        let at = self.place(id)?;
        let entry = &mut self.entries[at as usize];
        let was_idle = entry.open.is_none();
        let outcome = change(entry);
        let stays_newest = at == self.newest && entry.open.is_none();
        if !stays_newest {
            if was_idle {
                self.unlink(at);
            }
            self.link(at);
        }
        Some(outcome)
    }

    /// Forgets the producer without an open transaction that has not appended for longest.
    pub(super) fn remove_oldest(&mut self) -> Option<ProducerId> {
        let at = self.oldest;
        let id = self.entries.get(at as usize)?.id;
        self.unlink(at);
        self.places.remove(&id);
        self.free.push(at);
        Some(id)
    }

    /// Producers without an open transaction, from the one that has not appended for longest.
    pub(super) fn idle(&self) -> impl Iterator<Item = &Entry> {
        let mut at = self.oldest;
        std::iter::from_fn(move || {
            let entry = self.entries.get(at as usize)?;
            at = self.links[at as usize].newer;
            Some(entry)
        })
    }

    /// All producers, and those that are forgotten and whose places are free, in no order.
    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.entries.iter_mut()
    }

    /// Puts the producer at the new end, unless it has a transaction open.
    fn link(&mut self, at: u32) {
        if self.entries[at as usize].open.is_some() {
            return;
        }
        self.links[at as usize] = Link { older: self.newest, newer: NONE };
        match self.links.get_mut(self.newest as usize) {
            Some(before) => before.newer = at,
            None => self.oldest = at,
        }
        self.newest = at;
    }

    fn unlink(&mut self, at: u32) {
        let Link { older, newer } = self.links[at as usize];
        match self.links.get_mut(older as usize) {
            Some(before) => before.newer = newer,
            None => self.oldest = newer,
        }
        match self.links.get_mut(newer as usize) {
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
        while let Some(entry) = producers.entries.get(at as usize) {
            backward.insert(0, entry.id.0);
            at = producers.links[at as usize].older;
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
        assert_eq!(producers.entries.len(), 3, "the place of a forgotten one is used again");
    }
}
