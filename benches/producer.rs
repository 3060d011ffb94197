//! Producers: what a record costs one thread, and how near durable sends come to the disk.

mod common;

use std::hint::black_box;
use std::time::{Duration, Instant};

use common::bare::{BareDurable, BareLog, Frame};
use common::bare_group::BareGroup;
use common::ours::{self, Shape};
use common::{Bench, Goal, Line, Outcome, Unit, noise, rate, repeated_by, timed};
use oncelog::{Acks, Flush, Producer, Record, Retention, Store};

const VALUE_BYTES: usize = 100;
const WAIT: Duration = Duration::from_secs(60);
/// Deliveries that are kept before they are waited for.
const BULK: u64 = 1000;
const SEGMENTS_KEPT: u64 = 4;

fn main() -> Outcome<()> {
    let mut bench = Bench::new("producer")?;
    let line = Line {
        name: "send 100 B, Os, 1 thread, awaited in bulk",
        durability: "process death",
        unit: Unit::Records,
        goal: Goal::Min(5e6),
        limit: "copy and CRCs",
    };
    bench.compare(&line, bare_copies, |bench| bulk(bench, Flush::Os, 20_000_000))?;
    let line = Line {
        name: "send 100 B, OnAck, 1 thread, awaited in bulk",
        durability: "power loss",
        goal: Goal::None,
        limit: "the same, Os",
        ..line
    };
    bench.compare(
        &line,
        |bench| bulk(bench, Flush::Os, 3_000_000),
        |bench| bulk(bench, Flush::OnAck, 3_000_000),
    )?;
    let line = Line {
        name: "send and wait 100 B, OnAck, 1 thread",
        goal: Goal::RatioMin(0.9),
        limit: "write + fdatasync, written space",
        ..line
    };
    bench.compare(&line, bare_durable, |bench| waiting(bench, 1))?;
    for (name, threads) in [
        ("send and wait 100 B, OnAck, 4 threads", 4),
        ("send and wait 100 B, OnAck, 64 threads", 64),
    ] {
        let line = Line { name, limit: "leader gathers", ..line };
        bench.compare(
            &line,
            |bench| {
                let bytes = Frame::new(1, VALUE_BYTES).len();
                let log = BareGroup::create(&bench.fresh("bare")?, bytes)?;
                repeated_by(threads, span(bench), |called| Ok(log.append(called)?))
            },
            |bench| waiting(bench, threads),
        )?;
    }
    bench.finish();
    Ok(())
}

fn span(bench: &Bench) -> Duration {
    bench.amount(Duration::from_millis(1500), Duration::from_millis(30))
}

fn segment_bytes(bench: &Bench) -> u64 {
    bench.amount(256 << 20, 1 << 20)
}

fn producer(bench: &Bench, flush: Flush) -> Outcome<(Store, Producer)> {
    let segment_bytes = segment_bytes(bench);
    let retention = Retention::bytes(segment_bytes * (SEGMENTS_KEPT - 1));
    let shape = Shape { flush, retention, ..Shape::plain(segment_bytes) };
    let store = ours::create(&bench.fresh("ours")?, &shape)?;
    let producer = store.producer().acks(Acks::All).build()?;
    Ok((store, producer))
}

/// The same records through a bare loop.
fn bare_copies(bench: &Bench) -> Outcome<f64> {
    let records = bench.amount(20_000_000, 20_000);
    let kept = usize::try_from(SEGMENTS_KEPT)?;
    let bytes = usize::try_from(segment_bytes(bench))?;
    let mut log = BareLog::create(&bench.fresh("bare")?, bytes, kept)?;
    let mut frame = Frame::new(1, VALUE_BYTES);
    let figure = timed(records, || {
        for _ in 0..records {
            log.append(&mut frame)?;
        }
        Ok(())
    })?;
    drop(log);
    bench.fresh("bare")?;
    Ok(figure)
}

/// One thread sends, and looks at the outcomes a thousand at a time.
fn bulk(bench: &Bench, flush: Flush, records: u64) -> Outcome<f64> {
    let records = bench.amount(records, 20_000);
    let (store, producer) = producer(bench, flush)?;
    let value = noise(VALUE_BYTES);
    let mut deliveries = Vec::new();
    let figure = timed(records, || {
        for _ in 0..records / BULK {
            for _ in 0..BULK {
                deliveries.push(producer.send(Record::to(ours::TOPIC).value(black_box(&value)))?);
            }
            for delivery in deliveries.drain(..) {
                black_box(delivery.wait(WAIT)?);
            }
        }
        Ok(())
    })?;
    let partition = store.partition(ours::TOPIC, 0)?;
    if partition.high_watermark().0 != records {
        return Err("not every record is there".into());
    }
    ours::read_last(&partition)?;
    drop((partition, producer, store));
    bench.fresh("ours")?;
    Ok(figure)
}

fn bare_durable(bench: &Bench) -> Outcome<f64> {
    let mut log = BareDurable::create(&bench.fresh("bare")?, Frame::new(1, VALUE_BYTES))?;
    let (started, mut count) = (Instant::now(), 0);
    while started.elapsed() < span(bench) {
        log.append()?;
        count += 1;
    }
    Ok(rate(count, started.elapsed()))
}

/// Every thread sends a record and waits for it, again and again.
fn waiting(bench: &Bench, threads: usize) -> Outcome<f64> {
    let (store, producer) = producer(bench, Flush::OnAck)?;
    let value = noise(VALUE_BYTES);
    let figure = repeated_by(threads, span(bench), |_| {
        producer.send(Record::to(ours::TOPIC).value(&value))?.wait(WAIT)?;
        Ok(())
    })?;
    ours::read_last(&store.partition(ours::TOPIC, 0)?)?;
    let counters = producer.counters();
    if !bench.smoke {
        let gathered = counters.records as f64 / counters.batches as f64;
        bench.note(&format!("{threads} threads: {gathered:.1} records a batch"));
    }
    drop((producer, store));
    bench.fresh("ours")?;
    Ok(figure)
}
