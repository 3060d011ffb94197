//! From an append to the reader that waits for it, and what an append pays when nobody waits.

mod common;

use std::time::Duration;

use common::handover::{bare, handed_over};
use common::ours::{self, Shape};
use common::{Bench, Goal, Line, Outcome, Unit, noise, timed};
use oncelog::{Acks, Error, Offset, Partition, Record, Store};

const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Outcome<()> {
    let mut bench = Bench::new("wakeup")?;
    let count = bench.amount(5_000, 50);
    let segment_bytes = bench.amount(256 << 20, 4 << 20);
    let line = Line {
        name: "append to wake-up of a blocked reader, p50",
        durability: "process death",
        unit: Unit::Time,
        goal: Goal::RatioMax(1.5),
        limit: "condvar hand-over",
    };
    bench.compare(
        &line,
        |_| Ok(bare(count)?.quantile(0.5)),
        |bench| {
            let store = ours::create(&bench.fresh("ours")?, &Shape::plain(segment_bytes))?;
            let partition = store.partition(ours::TOPIC, 0)?;
            let value = noise(100);
            let seen = handed_over(
                count,
                |number| {
                    partition.append(&[Record::new(&value)], Acks::Leader)?;
                    debug_assert_eq!(partition.log_end_offset(), Offset(number + 1));
                    Ok(())
                },
                |number| Ok(partition.wait_for(Offset(number), PATIENCE)?),
            )?;
            Ok(seen.quantile(0.5))
        },
    )?;

    let appends = bench.amount(5_000_000, 10_000);
    let line = Line {
        name: "append 100 B after a reader has waited and gone",
        durability: "process death",
        unit: Unit::Records,
        goal: Goal::RatioMin(0.95),
        limit: "where none ever waited",
    };
    let segment_bytes = bench.amount(1 << 30, 4 << 20);
    let plain = |bench: &Bench, waited: bool| {
        let store = ours::create(&bench.fresh("ours")?, &Shape::plain(segment_bytes))?;
        let partition = store.partition(ours::TOPIC, 0)?;
        if waited {
            wait_in_vain(&store, &partition)?;
        }
        timed(appends, || ours::fill(&partition, &noise(100), 1, appends))
    };
    bench.compare(&line, |bench| plain(bench, false), |bench| plain(bench, true))?;
    bench.finish();
    Ok(())
}

/// Waits for a record that does not come.
fn wait_in_vain(store: &Store, partition: &Partition) -> Outcome<()> {
    let end = partition.log_end_offset();
    match partition.wait_for(end, Duration::from_millis(5)) {
        Err(Error::TimedOut { .. }) => Ok(()),
        other => {
            Err(format!("{}: waited in vain, and got {other:?}", store.path().display()).into())
        }
    }
}
