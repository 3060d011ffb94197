//! The table of transactions, where a leader goes with what it alone had.

use super::*;
use crate::config::TopicConfig;
use crate::record::Record;
use crate::storage::simulated::SimDisk;
use crate::store::{Store, StoreBuilder};
use crate::types::ProducerId;

fn on(disks: &[SimDisk]) -> StoreBuilder {
    let all = |builder: StoreBuilder, disk: &SimDisk| builder.simulated_disk(disk.clone());
    disks.iter().fold(Store::builder().flush(Flush::OnAck), all)
}

/// It was written again with the rest before its abort was, and a process that died just then had committed what
/// [`Error::written`] had said was not.
#[test]
fn a_decision_that_another_leader_lacks_is_not_written_again() {
    let disks: Vec<_> = (1..=3).map(SimDisk::new).collect();
    let store = on(&disks).open().unwrap();
    store.create_topic("t", TopicConfig::new().replication_factor(3)).unwrap();
    let mut held = store.producer().transactional_id("id").build().unwrap();
    let mut transaction = held.begin().unwrap();
    transaction.append("t", 0, &[Record::new("x")]).unwrap();
    let id = transaction.id();
    let tag = TransactionTag { producer: id.producer, epoch: id.epoch };
    let shared = store.shared();
    let transactions = shared.transactions().unwrap();
    let internal = {
        let mut state = transactions.state.lock();
        // Its leader fails before it is anywhere else.
        let (request, outcome) = (RequestId(u64::MAX), Outcome::Committed);
        let now = transactions.clock.now();
        let effects = state.coordinator.step(now, Event::End { request, tag, outcome });
        let [Effect::Persist { record }] = &effects[..] else { panic!("{effects:?}") };
        put(&mut state.table, record.key(), record.value());
        Arc::clone(state.topic.core())
    };
    store.stop_disk(internal.leader().unwrap()).unwrap();
    let name = "x".repeat(30_000);
    for _ in 0..1000 {
        drop(store.producer().transactional_id(name.as_str()).build().unwrap());
        store.run_background();
        if internal.log_start() > Offset::ZERO {
            break;
        }
    }
    assert!(internal.log_start() > Offset::ZERO, "it was written again");
    disks.iter().for_each(SimDisk::kill);
    drop(transaction);
    drop((held, transactions, internal, store));
    disks.iter().for_each(SimDisk::heal);
    disks.iter().for_each(SimDisk::process_restart);
    let store = on(&disks).open().unwrap();
    drop(store.producer().transactional_id("id").build().unwrap());
    assert_eq!(store.shared().transactions().unwrap().verdict(tag), Verdict::Aborted);
}

/// The word of the one that failed last was everybody's: first of all, then of all holders of an id. Who had left a decision
/// that is in the log was told that nothing was written, for the next holder's record had been refused.
#[test]
fn of_records_that_fail_at_once_each_tells_its_own_reason() {
    let store = on(&[SimDisk::new(1)]).open().unwrap();
    store.create_topic("t", TopicConfig::new()).unwrap();
    let mut held = store.producer().transactional_id("id").build().unwrap();
    let mut transaction = held.begin().unwrap();
    transaction.append("t", 0, &[Record::new("x")]).unwrap();
    let id = transaction.id();
    let tag = TransactionTag { producer: id.producer, epoch: id.epoch };
    let (shared, id) = (store.shared(), Arc::<str>::from("id"));
    let transactions = shared.transactions().unwrap();
    let fails = |event, error| {
        transactions.step(shared, event);
        transactions.finish(shared, vec![Job::Persist { id: Arc::clone(&id), begun: Err(error) }]);
    };
    let [first, second] = [u64::MAX - 1, u64::MAX].map(RequestId);
    let outcome = Outcome::Committed;
    fails(Event::End { request: first, tag, outcome }, Error::in_doubt("it", Duration::ZERO));
    let (timeout, fresh) = (Duration::from_secs(1), ProducerId(1));
    let open = Open { request: second, id: Arc::clone(&id), timeout, fresh, renews: None };
    let partition = transactions.state.lock().topic.core().partition().clone();
    fails(Event::Open(open), Error::NotEnoughReplicas { partition, in_sync: 1, required: 2 });
    let mut state = transactions.state.lock();
    let told = [first, second].map(|request| {
        let (answer, why) = state.take_answer(request).expect("it has failed");
        assert_eq!(answer, Answer::Failed);
        in_doubt(&id, Duration::ZERO, why).written()
    });
    assert_eq!(told, [Written::Unknown, Written::No]);
}

/// It is read anew first, and somebody's record is always on its way.
#[test]
fn under_another_leader_decisions_are_written_again_while_others_are_made() {
    let disks: Vec<_> = (1..=3).map(SimDisk::new).collect();
    let store = on(&disks).threads().open().unwrap();
    drop(store.producer().transactional_id("id").build().unwrap());
    let transactions = store.shared().transactions().unwrap();
    let internal = Arc::clone(transactions.state.lock().topic.core());
    store.stop_disk(internal.leader().unwrap()).unwrap();
    std::thread::scope(|scope| {
        for letter in ["a", "b", "c", "d"] {
            let (store, internal, name) = (&store, &internal, letter.repeat(30_000));
            scope.spawn(move || {
                for _ in 0..100 {
                    drop(store.producer().transactional_id(name.as_str()).build().unwrap());
                    if internal.log_start() > Offset::ZERO {
                        return;
                    }
                }
            });
        }
    });
    assert!(internal.log_start() > Offset::ZERO, "it was written again");
}
