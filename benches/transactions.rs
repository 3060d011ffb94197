//! Numbers and transactions: what they cost beside the same appends without them.

mod common;

use std::hint::black_box;
use std::time::{Duration, Instant};

use common::bare::{BareDurable, Frame};
use common::ours::{self, Shape};
use common::{Bench, Goal, Line, Outcome, Slices, Unit, noise, rate, timed};
use oncelog::{
    Acks, Flush, Isolation, Offset, Partition, ProducerEpoch, ProducerId, ProducerSequence,
    ReadOptions, Record, Store, TransactionalProducer,
};

const VALUE_BYTES: usize = 100;
const WAIT: Duration = Duration::from_secs(60);
const PARTITIONS: u32 = 3;
/// Records of a transaction in each partition: a hundred in all.
const SHARES: [usize; 3] = [34, 33, 33];
/// Reads of a slice, of a mebibyte each.
const READS: usize = 8;

fn main() -> Outcome<()> {
    let mut bench = Bench::new("transactions")?;
    let line = Line {
        name: "append 100 B, numbered, Os, 1 thread",
        durability: "process death",
        unit: Unit::Records,
        goal: Goal::RatioMin(0.95),
        limit: "the same, plain",
    };
    bench.compare_by_slices(
        &line,
        |bench| appends(bench, "limit", 0, false),
        |bench| appends(bench, "ours", 0, true),
    )?;
    let line = Line {
        name: "append 100 B, numbered, Os, beside 100,000 producers",
        goal: Goal::RatioMin(0.95),
        limit: "the same, beside none",
        ..line
    };
    bench.compare_by_slices(
        &line,
        |bench| appends(bench, "limit", 0, true),
        |bench| appends(bench, "ours", 100_000, true),
    )?;
    let line = Line {
        name: "transactions of 100 records, 3 partitions, Os",
        goal: Goal::RatioMin(0.8),
        limit: "the same appends",
        ..line
    };
    bench.compare_by_slices(
        &line,
        |bench| hundreds(bench, "limit", Hundred::Plain),
        |bench| hundreds(bench, "ours", Hundred::Transaction),
    )?;
    // What a transaction adds at the least: a decision, and a marker in each partition.
    let line = Line {
        name: "transactions of 100 records, beside as many appends",
        goal: Goal::None,
        limit: "the same appends and 4 of 1 record",
        ..line
    };
    bench.compare_by_slices(
        &line,
        |bench| hundreds(bench, "limit", Hundred::PlainAndFour),
        |bench| hundreds(bench, "ours", Hundred::Transaction),
    )?;
    let line = Line {
        name: "transactions of 1 record, Os",
        goal: Goal::Min(1e5),
        limit: "appends of 1 record",
        ..line
    };
    bench.compare(&line, |bench| tiny(bench, false), |bench| tiny(bench, true))?;
    let line = Line {
        name: "a transaction of 1 record, OnAck: time",
        durability: "power loss",
        unit: Unit::Time,
        goal: Goal::RatioMax(2.2),
        limit: "write + fdatasync, written space",
    };
    bench.compare(&line, bare_time, commit_time)?;
    let line = Line {
        name: "read committed, 10 % aborted",
        durability: "-",
        unit: Unit::Records,
        goal: Goal::RatioMin(0.9),
        limit: "read uncommitted",
    };
    bench.compare_by_slices(
        &line,
        |bench| reads(bench, "limit", Isolation::ReadUncommitted),
        |bench| reads(bench, "ours", Isolation::ReadCommitted),
    )?;
    bench.finish();
    Ok(())
}

/// A store in the directory `name` whose own topics are flushed like the bench's.
fn store(bench: &Bench, name: &str, flush: Flush, partitions: u32) -> Outcome<Store> {
    let segment_bytes = bench.amount(256 << 20, 1 << 20);
    let store = Store::builder().disk(bench.fresh(name)?).flush(flush).open()?;
    let shape = Shape { partitions, flush, ..Shape::plain(segment_bytes) };
    ours::create_topic(&store, &shape)?;
    Ok(store)
}

fn done(bench: &Bench, store: Store) -> Outcome<()> {
    drop(store);
    bench.fresh("ours")?;
    Ok(())
}

/// Single records, beside producers that the partition has met before.
fn appends(bench: &Bench, name: &str, others: u64, numbered: bool) -> Outcome<Slices> {
    let records = bench.amount(20_000, 1000);
    let others = bench.amount(others, others.min(1000));
    let store = store(bench, name, Flush::Os, 1)?;
    let partition = store.partition(ours::TOPIC, 0)?;
    let value = noise(VALUE_BYTES);
    let from = |id: u64, sequence| ProducerSequence {
        id: ProducerId(id),
        epoch: ProducerEpoch(0),
        sequence,
    };
    let before = resident_bytes();
    for id in 0..others {
        partition.append_idempotent(from(id + 2, 0), &[Record::new(&value)], Acks::Leader)?;
    }
    if others > 1000 {
        let bytes = resident_bytes().saturating_sub(before) / others;
        bench.note(&format!("{others} producers take about {bytes} bytes each, log and all"));
    }
    let mut next = 0;
    Ok(Box::new(move || {
        // The partition's store lives as long as its slices.
        let _store = &store;
        for sequence in next..next + records {
            let batch = [Record::new(black_box(&value))];
            if numbered {
                partition.append_idempotent(from(1, sequence), &batch, Acks::Leader)?;
            } else {
                partition.append(&batch, Acks::Leader)?;
            }
        }
        next += records;
        Ok(records)
    }))
}

/// Pages that the process has in memory, in bytes; 0 where that is not to be had.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or_default() * 4096
}

fn producer(store: &Store) -> Outcome<TransactionalProducer> {
    Ok(store.producer().transactional_id("bench").build()?)
}

/// How a hundred records are appended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hundred {
    Plain,
    /// And a single record to each partition, and one more to a fourth.
    PlainAndFour,
    Transaction,
}

/// A hundred records over three partitions, again and again.
fn hundreds(bench: &Bench, name: &str, how: Hundred) -> Outcome<Slices> {
    let rounds = bench.amount(300, 50);
    let store = store(bench, name, Flush::Os, PARTITIONS + 1)?;
    let value = noise(VALUE_BYTES);
    let partitions: Vec<Partition> = (0..=PARTITIONS)
        .map(|number| store.partition(ours::TOPIC, number))
        .collect::<Result<_, _>>()?;
    let mut producer = producer(&store)?;
    Ok(Box::new(move || {
        let _store = &store;
        let batches = SHARES.map(|count| vec![Record::new(&value); count]);
        for _ in 0..rounds {
            if how == Hundred::Transaction {
                let mut transaction = producer.begin()?;
                for (number, batch) in (0..).zip(&batches) {
                    transaction.append(ours::TOPIC, number, batch)?;
                }
                transaction.commit(WAIT)?;
                continue;
            }
            for (partition, batch) in partitions.iter().zip(&batches) {
                partition.append(batch, Acks::All)?;
            }
            if how == Hundred::PlainAndFour {
                for partition in &partitions {
                    partition.append(&batches[0][..1], Acks::All)?;
                }
            }
        }
        Ok(rounds * 100)
    }))
}

/// One record, and that is all.
fn tiny(bench: &Bench, in_transactions: bool) -> Outcome<f64> {
    let rounds = bench.amount(300_000, 500);
    let store = store(bench, "ours", Flush::Os, 1)?;
    let value = noise(VALUE_BYTES);
    let partition = store.partition(ours::TOPIC, 0)?;
    let mut producer = producer(&store)?;
    let figure = timed(rounds, || {
        for _ in 0..rounds {
            let batch = [Record::new(black_box(&value))];
            if in_transactions {
                let mut transaction = producer.begin()?;
                transaction.append(ours::TOPIC, 0, &batch)?;
                transaction.commit(WAIT)?;
            } else {
                partition.append(&batch, Acks::All)?;
            }
        }
        Ok(())
    })?;
    drop((producer, partition));
    done(bench, store)?;
    Ok(figure)
}

fn span(bench: &Bench) -> Duration {
    bench.amount(Duration::from_millis(1500), Duration::from_millis(30))
}

fn bare_time(bench: &Bench) -> Outcome<f64> {
    let mut log = BareDurable::create(&bench.fresh("bare")?, Frame::new(1, VALUE_BYTES))?;
    let (started, mut count) = (Instant::now(), 0);
    while started.elapsed() < span(bench) {
        log.append()?;
        count += 1;
    }
    Ok(1.0 / rate(count, started.elapsed()))
}

/// From the begin to the return of the commit.
fn commit_time(bench: &Bench) -> Outcome<f64> {
    let store = store(bench, "ours", Flush::OnAck, 1)?;
    let value = noise(VALUE_BYTES);
    let mut producer = producer(&store)?;
    let (started, mut count) = (Instant::now(), 0);
    while started.elapsed() < span(bench) {
        let mut transaction = producer.begin()?;
        transaction.append(ours::TOPIC, 0, &[Record::new(&value)])?;
        transaction.commit(WAIT)?;
        count += 1;
    }
    let figure = 1.0 / rate(count, started.elapsed());
    drop(producer);
    done(bench, store)?;
    Ok(figure)
}

/// A log of transactions, of which each tenth was aborted, from one end to the other and again.
fn reads(bench: &Bench, name: &str, isolation: Isolation) -> Outcome<Slices> {
    let rounds = bench.amount(40_000, 50);
    let store = store(bench, name, Flush::Os, 1)?;
    let value = noise(VALUE_BYTES);
    let batch = vec![Record::new(&value); 50];
    let mut producer = producer(&store)?;
    for round in 0..rounds {
        let mut transaction = producer.begin()?;
        transaction.append(ours::TOPIC, 0, &batch)?;
        if round % 10 == 9 {
            transaction.abort(WAIT)?;
        } else {
            transaction.commit(WAIT)?;
        }
    }
    let partition = store.partition(ours::TOPIC, 0)?;
    let options = ReadOptions::new().max_bytes(1 << 20).isolation(isolation);
    let (mut next, end) = (Offset(0), partition.high_watermark());
    Ok(Box::new(move || {
        let _store = &store;
        let (from, mut sum) = (next, 0);
        for _ in 0..READS {
            let records = partition.read(next, options)?;
            for record in &records {
                sum ^= common::touch(record.value().unwrap_or_default());
            }
            next = records.next_offset();
            if next >= end {
                break;
            }
        }
        black_box(sum);
        // Records passed over count: what a reader walks along is the same.
        let passed = next.0 - from.0;
        if next >= end {
            next = Offset(0);
        }
        Ok(passed)
    }))
}
