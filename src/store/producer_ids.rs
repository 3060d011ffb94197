//! Numbers for producers, each given once in the life of a store, and who holds a name.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::{RwLock, RwLockReadGuard};

use crate::error::{Error, Result};
use crate::protocol::metadata::{MetadataRecord, PRODUCER_NAME_BYTES_MAX};
use crate::types::{ProducerEpoch, ProducerId};

use super::{Shared, Store};

/// How many are made durable at a time: what a crash leaves of them is never given.
const BLOCK: u64 = 1000;

/// Those that were made durable and have not been given.
pub(super) type ProducerIds = Range<u64>;

/// The names that were held since the store was opened.
pub(super) type Names = HashMap<String, Arc<Reign>>;

/// Under which epoch a name is held now.
#[derive(Debug)]
pub(super) struct Reign {
    id: ProducerId,
    epoch: RwLock<ProducerEpoch>,
}

/// A name's holder, until the next one takes over.
#[derive(Clone, Debug)]
pub(crate) struct Holder {
    pub(crate) id: ProducerId,
    pub(crate) epoch: ProducerEpoch,
    reign: Arc<Reign>,
}

impl Holder {
    /// As long as the answer is kept, nobody takes over: an append under it is not a late one.
    ///
    /// # Errors
    /// [`Error::ProducerFenced`] when somebody has taken over.
    pub(crate) fn reigns(&self) -> Result<RwLockReadGuard<'_, ProducerEpoch>> {
        let current = self.reign.epoch.read();
        if *current == self.epoch {
            return Ok(current);
        }
        Err(Error::ProducerFenced { id: self.id, epoch: self.epoch, current: *current })
    }
}

impl Store {
    /// A number that no producer had before.
    ///
    /// # Errors
    /// What making the next block durable runs into.
    pub(crate) fn new_producer_id(&self) -> Result<ProducerId> {
        self.shared().check_writable()?;
        self.shared().new_producer_id(false)
    }

    /// Takes over the producer of that name; who held it until now is fenced when this returns.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for a name that cannot be one; [`Error::TimedOut`] when an append of the holder's is under
    /// way for longer than the store's append timeout; what writing it down runs into.
    pub(crate) fn hold_name(&self, name: &str) -> Result<Holder> {
        self.shared().check_writable()?;
        if name.is_empty() || name.len() > PRODUCER_NAME_BYTES_MAX {
            return Err(Error::InvalidConfig {
                key: "name".into(),
                value: name.to_owned(),
                reason: format!("a producer's name has 1 to {PRODUCER_NAME_BYTES_MAX} bytes"),
            });
        }
        self.shared().hold_name(name)
    }
}

impl Shared {
    /// A number that nobody had before. `named`: its holder is known by a name, and never forgotten by age.
    ///
    /// # Errors
    /// What making the next block durable runs into.
    pub(super) fn new_producer_id(&self, named: bool) -> Result<ProducerId> {
        let mut ids = self.producer_ids.lock();
        if ids.is_empty() {
            let mut metadata = self.metadata.lock();
            let first = metadata.state().next_producer_id();
            let block = MetadataRecord::ProducerIdBlock { next: first + BLOCK };
            metadata.commit(&block).map_err(Error::of_others)?;
            *ids = first..first + BLOCK;
        }
        let number = ids.next().expect("a block was made just now");
        let mark = if named { ProducerId::NAMED } else { ProducerId::GIVEN };
        Ok(ProducerId(mark | number))
    }

    fn hold_name(&self, name: &str) -> Result<Holder> {
        let reign = self.reign_of(name)?;
        let (id, name) = (reign.id, name.to_owned());
        // Waits for an append that the holder has under way, which may hang: under no lock that others need.
        let timeout = self.options.append_timeout;
        let Some(mut current) = reign.epoch.try_write_for(timeout) else {
            let what = format!("an append of the holder of {name}");
            return Err(Error::late(what, timeout));
        };
        let Some(epoch) = current.0.checked_add(1).map(ProducerEpoch) else {
            let reason = "it was held 2^32 times".to_owned();
            return Err(Error::InvalidConfig { key: "name".into(), value: name, reason });
        };
        self.metadata.lock().commit(&MetadataRecord::ProducerNamed { name, id, epoch })?;
        *current = epoch;
        drop(current);
        Ok(Holder { id, epoch, reign })
    }

    /// Under which epoch a name is held.
    fn reign_of(&self, name: &str) -> Result<Arc<Reign>> {
        let mut names = self.producer_names.lock();
        Ok(match names.get(name) {
            Some(reign) => Arc::clone(reign),
            None => {
                let known = self.metadata.lock().state().named_producer(name);
                let (id, epoch) = match known {
                    Some(known) => known,
                    None => (self.new_producer_id(true)?, ProducerEpoch(0)),
                };
                let reign = Arc::new(Reign { id, epoch: RwLock::new(epoch) });
                names.insert(name.to_owned(), Arc::clone(&reign));
                reign
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::config::TopicConfig;
    use crate::producer::Producer;
    use crate::record::Record;
    use crate::storage::simulated::SimDisk;

    const LONG: Duration = Duration::from_secs(10);

    /// Whoever took over a name waited without an end for the holder's append, and kept all names from everybody.
    #[test]
    fn s22_a_name_whose_holder_hangs_in_an_append_is_waited_for_in_time_and_holds_up_no_other() {
        let timeout = Duration::from_millis(50);
        let disk = SimDisk::new(1);
        let store = Store::builder().append_timeout(timeout).simulated_disk(disk).open().unwrap();
        let holder = store.hold_name("a").unwrap();
        let append = holder.reigns().unwrap();
        let (told, ended) = channel();
        for name in ["a", "b"] {
            let (store, told) = (store.clone(), told.clone());
            thread::spawn(move || told.send((name, store.hold_name(name).map(drop))));
        }
        for _ in 0..2 {
            match ended.recv_timeout(Duration::from_secs(30)).expect("it does not end") {
                ("a", Err(Error::TimedOut { .. })) | ("b", Ok(())) => {}
                outcome => panic!("{outcome:?}"),
            }
        }
        drop(append);
        assert!(holder.reigns().is_ok(), "nobody has taken over");
        store.hold_name("a").unwrap();
        assert!(matches!(holder.reigns(), Err(Error::ProducerFenced { .. })));
    }

    /// What the next holder was told of the last record would not count that one, and it would come twice.
    #[test]
    fn nobody_takes_over_a_name_while_its_holder_appends() {
        let timeout = Duration::from_millis(50);
        let disk = SimDisk::new(1);
        let builder = Store::builder().append_timeout(timeout).simulated_disk(disk.clone());
        let store = builder.open().unwrap();
        store.create_topic("t", TopicConfig::new().segment_bytes(4096)).unwrap();
        let hold = || store.producer().name("a").build();
        let send = |holder: &Producer| {
            let value = "x".repeat(3000);
            holder.send(Record::to("t").partition(0).value(&value)).and_then(|_| holder.flush(LONG))
        };
        let holder = hold().unwrap();
        send(&holder).unwrap();
        thread::scope(|scope| {
            // The next one needs another segment.
            disk.hold_call(1);
            let sent = scope.spawn(|| send(&holder));
            while !disk.holds_call() {
                thread::yield_now();
            }
            let taken = hold();
            disk.answer();
            assert!(matches!(taken, Err(Error::TimedOut { .. })), "{taken:?}");
            sent.join().unwrap().unwrap();
        });
        assert_eq!(hold().unwrap().next_sequence("t", 0).unwrap(), 2);
    }
}
