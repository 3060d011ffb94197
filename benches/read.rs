//! Sequential reads: every checksum verified, every record's value looked at.

mod common;

use std::hint::black_box;

use common::bare::{BareScan, Frame};
use common::counting::{Allocated, Counting};
use common::ours::{self, Shape};
use common::{Bench, Goal, Line, Outcome, Unit, noise, timed};
use oncelog::{Partition, StorageMode, Store};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const VALUE_BYTES: usize = 100;
/// Bytes asked for by one read.
const STEP_BYTES: usize = 1 << 20;

/// A log to read: which part of it, and how it was written.
#[derive(Clone, Copy)]
struct Work {
    name: &'static str,
    batch: usize,
    segment_bytes: u64,
    mode: StorageMode,
}

fn main() -> Outcome<()> {
    let mut bench = Bench::new("read")?;
    let bytes_total: u64 = bench.amount(512 << 20, 4 << 20);
    let small = bench.amount(64 << 20, 1 << 20);
    // Everything is in the active segment, which is what the tail is.
    let large = bytes_total + (64 << 20);
    let (auto, mapped) = (StorageMode::Auto, StorageMode::Mmap);
    for (part, segment_bytes, mode) in [
        ("the tail", large, auto),
        ("sealed", small, auto),
        ("sealed, StorageMode::Mmap", small, mapped),
    ] {
        for (kind, batch) in [("batches of 100 x 100 B", 100), ("single 100 B records", 1)] {
            let name = format!("read {kind}, {part}");
            let work = Work { name: name.leak(), batch, segment_bytes, mode };
            read(&mut bench, &work, bytes_total)?;
        }
    }
    bench.finish();
    Ok(())
}

fn read(bench: &mut Bench, work: &Work, bytes_total: u64) -> Outcome<()> {
    if !bench.wants(work.name) {
        return Ok(());
    }
    let frame = Frame::new(work.batch, VALUE_BYTES);
    let appends = bytes_total / frame.len() as u64;
    let bare = BareScan::create(
        &bench.fresh("bare")?,
        frame,
        usize::try_from(bytes_total)?,
        bench.amount(64 << 20, 1 << 20),
    )?;
    let store = Store::builder().disk(bench.fresh("ours")?).storage_mode(work.mode).open()?;
    ours::create_topic(&store, &Shape::plain(work.segment_bytes))?;
    let partition = store.partition(ours::TOPIC, 0)?;
    ours::fill(&partition, &noise(VALUE_BYTES), work.batch, appends)?;

    let line = Line {
        name: work.name,
        durability: "-",
        unit: Unit::Records,
        goal: Goal::RatioMin(0.6),
        limit: "CRC and touch, mapped",
    };
    // Once before the turns, so that the first one does not pay for cold pages.
    black_box(bare.read()?);
    read_ours(&partition, appends * work.batch as u64)?;
    bench.compare(
        &line,
        |_| {
            timed(bare.records(), || {
                black_box(bare.read()?);
                Ok(())
            })
        },
        |_| {
            let records = appends * work.batch as u64;
            timed(records, || read_ours(&partition, records))
        },
    )?;
    allocated(bench, work, &partition, appends * work.batch as u64)?;
    drop((partition, store));
    bench.fresh("ours")?;
    Ok(())
}

/// Shows whether the bytes were copied: a copy of its own would have to be allocated.
fn allocated(bench: &mut Bench, work: &Work, partition: &Partition, records: u64) -> Outcome<()> {
    let tail = work.name.contains("tail");
    let line = Line {
        name: &format!("({}: bytes allocated per record)", work.name),
        durability: "-",
        unit: Unit::Count,
        goal: if tail { Goal::Max(1.0) } else { Goal::None },
        limit: "-",
    };
    bench.measure(&line, |_| {
        let before = Allocated::now();
        read_ours(partition, records)?;
        Ok(Allocated::now().since(before).bytes as f64 / records as f64)
    })
}

fn read_ours(partition: &Partition, records: u64) -> Outcome<()> {
    let count = ours::read_all(partition, STEP_BYTES)?;
    if count != records {
        return Err(format!("{records} records were appended and {count} were read").into());
    }
    Ok(())
}
