//! Consumers: what a poll costs beside a read, waking up, commits, and rebalances of large groups.

mod common;

use std::hint::black_box;
use std::time::{Duration, Instant};

use common::handover::{bare, handed_over};
use common::ours::{self, Shape};
use common::{Bench, Goal, Line, Outcome, Unit, noise, timed, touch};
use oncelog::{Acks, Consumer, Flush, Record, StartAt, Store, TopicConfig};

const VALUE_BYTES: usize = 100;
const PATIENCE: Duration = Duration::from_secs(30);
const MEMBERS: usize = 100;

fn main() -> Outcome<()> {
    let mut bench = Bench::new("consumer")?;
    let line = Line {
        name: "poll 100 B, values touched, one partition, warm",
        durability: "process death",
        unit: Unit::Records,
        goal: Goal::RatioMin(0.8),
        limit: "Partition::read",
    };
    if bench.wants(line.name) {
        let (store, count) = filled(&bench)?;
        let partition = store.partition(ours::TOPIC, 0)?;
        let step = 1 << 20;
        bench.compare(
            &line,
            |_| timed(count, || ours::read_all(&partition, step).map(drop)),
            |_| timed(count, || poll_all(&store, count)),
        )?;
    }
    let line = Line {
        name: "poll of 1,000 partitions, one with data, beyond that of one",
        unit: Unit::Time,
        goal: Goal::Max(2e-6),
        limit: "-",
        ..line
    };
    let (mut alone, mut among) = (0.0, 0.0);
    bench.measure(&line, |bench| {
        alone = one_of(bench, 1)?;
        among = one_of(bench, 1000)?;
        Ok((among - alone).max(0.0))
    })?;
    bench.note(&format!("last turn: {:.0} ns of one, {:.0} ns of 1,000", alone * 1e9, among * 1e9));
    waking(&mut bench)?;
    let commits = bench.amount(200_000, 200);
    let line = Line {
        name: "commit, Os, 1 partition",
        durability: "process death",
        unit: Unit::Records,
        goal: Goal::Min(200_000.0),
        limit: "append 100 B, Os",
    };
    bench.compare(
        &line,
        |bench| {
            let store = ours::create(&bench.fresh("bare")?, &Shape::plain(segment_bytes(bench)))?;
            let partition = store.partition(ours::TOPIC, 0)?;
            timed(commits, || ours::fill(&partition, &noise(VALUE_BYTES), 1, commits))
        },
        |bench| commit(bench, commits),
    )?;
    rebalance(&mut bench)?;
    bench.finish();
    Ok(())
}

fn segment_bytes(bench: &Bench) -> u64 {
    bench.amount(256 << 20, 4 << 20)
}

fn filled(bench: &Bench) -> Outcome<(Store, u64)> {
    let count = bench.amount(2_000_000, 20_000);
    let store = ours::create(&bench.fresh("ours")?, &Shape::plain(segment_bytes(bench)))?;
    let partition = store.partition(ours::TOPIC, 0)?;
    ours::fill(&partition, &noise(VALUE_BYTES), 100, count / 100)?;
    Ok((store, count))
}

fn reader(store: &Store, partitions: u32) -> Outcome<Consumer> {
    let mut consumer = store.consumer().start(StartAt::Earliest).build()?;
    let partitions: Vec<_> = (0..partitions).map(|number| (ours::TOPIC, number)).collect();
    consumer.assign(&partitions)?;
    Ok(consumer)
}

fn poll_all(store: &Store, count: u64) -> Outcome<()> {
    let mut consumer = reader(store, 1)?;
    let (mut seen, mut sum) = (0, 0);
    while seen < count {
        let records = consumer.poll(Duration::ZERO)?;
        if records.is_empty() {
            return Err(format!("{seen} of {count} records came").into());
        }
        for record in &records {
            sum ^= touch(record.value().unwrap_or_default());
            seen += 1;
        }
    }
    black_box(sum);
    Ok(())
}

/// What a poll takes that finds one record in one of so many partitions.
fn one_of(bench: &Bench, partitions: u32) -> Outcome<f64> {
    let rounds = bench.amount(20_000, 100);
    let shape = Shape { partitions, ..Shape::plain(1 << 20) };
    let store = ours::create(&bench.fresh("ours")?, &shape)?;
    let mut consumer = reader(&store, partitions)?;
    while !consumer.poll(Duration::ZERO)?.is_empty() {}
    let partition = store.partition(ours::TOPIC, partitions / 2)?;
    let value = noise(VALUE_BYTES);
    let mut taken = Duration::ZERO;
    for _ in 0..rounds {
        partition.append(&[Record::new(&value)], Acks::Leader)?;
        let started = Instant::now();
        let records = consumer.poll(Duration::ZERO)?;
        taken += started.elapsed();
        if records.count() != 1 {
            return Err(format!("{} records came", records.count()).into());
        }
    }
    Ok(taken.as_secs_f64() / f64::from(rounds))
}

fn waking(bench: &mut Bench) -> Outcome<()> {
    let count = bench.amount(5_000, 50);
    let line = Line {
        name: "send to poll of a blocked consumer, p50",
        durability: "process death",
        unit: Unit::Time,
        goal: Goal::RatioMax(2.0),
        limit: "condvar hand-over",
    };
    let mut tails = (0.0, 0.0);
    bench.compare(
        &line,
        |_| {
            let seen = bare(count)?;
            tails.0 = seen.quantile(0.99);
            Ok(seen.quantile(0.5))
        },
        |bench| {
            let store = ours::create(&bench.fresh("ours")?, &Shape::plain(segment_bytes(bench)))?;
            let producer = store.producer().acks(Acks::Leader).build()?;
            let mut consumer = reader(&store, 1)?;
            let value = noise(VALUE_BYTES);
            let seen = handed_over(
                count,
                |_| {
                    producer.send(Record::to(ours::TOPIC).value(&value))?.wait(PATIENCE)?;
                    Ok(())
                },
                move |_| match consumer.poll(PATIENCE)?.count() {
                    1 => Ok(()),
                    count => Err(format!("{count} records came").into()),
                },
            )?;
            tails.1 = seen.quantile(0.99);
            Ok(seen.quantile(0.5))
        },
    )?;
    let (limit, ours) = (tails.0 * 1e6, tails.1 * 1e6);
    bench.note(&format!("p99 of the last turn: {ours:.0} us, hand-over {limit:.0} us"));
    Ok(())
}

/// Reads one record and commits, again and again.
fn commit(bench: &Bench, commits: u64) -> Outcome<f64> {
    let directory = bench.fresh("ours")?;
    let store = Store::builder().disk(&directory).flush(Flush::Os).open()?;
    ours::create_topic(&store, &Shape::plain(segment_bytes(bench)))?;
    let partition = store.partition(ours::TOPIC, 0)?;
    ours::fill(&partition, &noise(8), 100, commits.div_ceil(100))?;
    let builder = store.consumer().group("bench").start(StartAt::Earliest);
    let mut consumer = builder.max_poll_records(1).build()?;
    consumer.subscribe(&[ours::TOPIC])?;
    // Polls are the other lines' matter: what is committed is prepared.
    consumer.poll(PATIENCE)?;
    let (name, mut next) = consumer.position_map().pop_first().ok_or("nothing was read")?;
    let mut offsets = std::collections::BTreeMap::from([(name, next.clone())]);
    timed(commits, || {
        for _ in 0..commits {
            next.offset = next.offset.next().min(partition.high_watermark());
            for held in offsets.values_mut() {
                held.offset = next.offset;
            }
            consumer.commit_offsets(&offsets)?;
        }
        Ok(())
    })
}

/// A member comes into a large group, and goes again.
fn rebalance(bench: &mut Bench) -> Outcome<()> {
    let partitions = bench.amount(10_000, 400);
    let members = bench.amount(MEMBERS, 8);
    let line = Line {
        name: "rebalance, 100 members, 10,000 partitions: one comes",
        durability: "-",
        unit: Unit::Time,
        goal: Goal::Max(0.05),
        limit: "-",
    };
    if !bench.wants(line.name) {
        return Ok(());
    }
    let store = Store::builder().disk(bench.fresh("ours")?).flush(Flush::Os).open()?;
    store.create_topic(ours::TOPIC, TopicConfig::new().partitions(partitions))?;
    let join = || -> Outcome<Consumer> {
        let mut consumer = store.consumer().group("bench").start(StartAt::Earliest).build()?;
        consumer.subscribe(&[ours::TOPIC])?;
        Ok(consumer)
    };
    let mut consumers = Vec::new();
    for _ in 1..members {
        consumers.push(join()?);
    }
    settle(&mut consumers, partitions)?;
    let mut moved = 0;
    bench.measure(&line, |_| {
        let before: Vec<_> = consumers.iter().map(Consumer::assignment).collect();
        let started = Instant::now();
        consumers.push(join()?);
        settle(&mut consumers, partitions)?;
        let taken = started.elapsed();
        let kept = |(before, after): (&Vec<_>, &Consumer)| {
            let after = after.assignment();
            before.iter().filter(|at| after.binary_search(at).is_ok()).count()
        };
        moved = partitions as usize - before.iter().zip(&consumers).map(kept).sum::<usize>();
        drop(consumers.pop());
        settle(&mut consumers, partitions)?;
        Ok(taken.as_secs_f64())
    })?;
    bench.note(&format!(
        "{moved} partitions moved; its even share is {}",
        partitions as usize / members
    ));
    Ok(())
}

/// Has all of them poll until every partition is somebody's, evenly.
fn settle(consumers: &mut [Consumer], partitions: u32) -> Outcome<()> {
    let least = partitions as usize / consumers.len();
    let started = Instant::now();
    loop {
        let held: Vec<_> = consumers.iter().map(|consumer| consumer.assignment().len()).collect();
        let all: usize = held.iter().sum();
        if all == partitions as usize && held.iter().all(|count| *count >= least) {
            return Ok(());
        }
        if started.elapsed() > PATIENCE {
            return Err(format!("{held:?}").into());
        }
        for consumer in &mut *consumers {
            consumer.poll(Duration::ZERO)?;
        }
    }
}
