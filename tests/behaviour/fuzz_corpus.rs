//! The bodies of the fuzz targets on a stable toolchain: over samples that decode, over what a
//! fuzzer found worth keeping (`tests/corpus`), and over random changes of both.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use oncelog::simulation::{Clock, SimDisk, fuzz};
use oncelog::{
    Acks, Compression, Error, Offset, ReadOptions, Record, Store, Timestamp, TopicConfig,
};

use crate::random::Random;

fn change(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.index(4) {
        let at = random.index(bytes.len());
        match random.index(6) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.index(8),
            1 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.index(5)],
            2 if !bytes.is_empty() => bytes.truncate(at),
            3 if bytes.len() > at + 4 => {
                let value = [0, 1, u32::MAX, 0x7fff_ffff, 1 << 20][random.index(5)];
                bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            }
            4 => bytes.insert(at.min(bytes.len()), u8::try_from(random.index(256)).unwrap()),
            _ => {
                let from = random.index(bytes.len());
                let part = bytes[from..].iter().take(16).copied().collect::<Vec<_>>();
                bytes.extend(part);
            }
        }
    }
}

/// The inputs that are kept; a fuzzer starts from them as well.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(target);
    let mut files: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 4, "the corpus of {target} is gone");
    files.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn run(target: &str, body: fn(&[u8]), mut samples: Vec<Vec<u8>>, rounds: usize) {
    let seed = std::env::var("ONCELOG_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(3);
    eprintln!(
        "replay with: ONCELOG_SEED={seed} cargo test --all-features --test behaviour fuzz_corpus"
    );
    samples.extend(corpus(target));
    for sample in &samples {
        let outcome = catch_unwind(AssertUnwindSafe(|| body(sample)));
        assert!(outcome.is_ok(), "{target} failed on {sample:02x?}");
    }
    let mut random = Random(seed);
    for _ in 0..rounds {
        let mut bytes = samples[random.index(samples.len())].clone();
        change(&mut random, &mut bytes);
        let outcome = catch_unwind(AssertUnwindSafe(|| body(&bytes)));
        assert!(outcome.is_ok(), "{target} failed on {bytes:02x?}");
    }
}

fn with_modes(bytes: &[u8], modes: u8) -> Vec<Vec<u8>> {
    (0..modes).map(|mode| [&[mode], bytes].concat()).collect()
}

#[test]
fn any_bytes_as_a_batch() {
    let codecs = [Compression::None, Compression::Lz4, Compression::Zstd, Compression::Snappy];
    let batches = codecs.map(fuzz::sample_batch);
    let mut samples: Vec<_> = batches.iter().flat_map(|batch| with_modes(batch, 3)).collect();
    samples.extend(with_modes(&batches.concat(), 3));
    run("batch", fuzz::batch, samples, 60_000);
}

#[test]
fn s6_any_bytes_as_a_side_file() {
    run("side_file", fuzz::side_file, with_modes(&fuzz::sample_side_file(), 2), 60_000);
}

#[test]
fn any_bytes_as_a_memory_of_producers() {
    run("producers", fuzz::producers, with_modes(&fuzz::sample_producers(), 2), 40_000);
}

#[test]
fn any_bytes_as_a_record_of_the_stores_own_topics() {
    run("table", fuzz::table, fuzz::sample_tables(), 40_000);
}

#[test]
fn s7_any_bytes_as_a_metadata_log() {
    run("metadata", fuzz::metadata, with_modes(&fuzz::sample_metadata(), 2), 20_000);
}

#[test]
fn s2_s15_any_bytes_in_any_file_of_a_store() {
    let mut random = Random(5);
    let mut samples = vec![vec![0], vec![1], vec![2], vec![8]];
    for _ in 0..2000 {
        let mut sample = vec![u8::try_from(random.index(16)).unwrap()];
        for _ in 0..=random.index(3) {
            let len = [0, 1, 1, 2, 4, 8, 60][random.index(7)];
            sample.extend((0..4).map(|_| u8::try_from(random.index(256)).unwrap()));
            sample.push(u8::try_from(len).unwrap());
            let fill = [0, 1, 0x7f, 0xff, u8::try_from(random.index(256)).unwrap()];
            sample.extend((0..len).map(|_| fill[random.index(5)]));
        }
        samples.push(sample);
    }
    run("open_any_bytes", fuzz::open_any_bytes, samples, 2_000);
}

const LOG: &str = "topics/00000001-t/0/00000000000000000000.log";
const SIDE: &str = "topics/00000001-t/0/00000000000000000000.side";

fn open(disk: &SimDisk) -> Store {
    let clock = Clock::manual(Timestamp(1));
    Store::builder().simulated_disk(disk.clone()).clock(clock).open().unwrap()
}

/// A store of one log with the records `0`, `1` and `2`, closed.
fn three_records() -> SimDisk {
    let disk = SimDisk::new(1);
    let store = open(&disk);
    store.create_topic("t", TopicConfig::new()).unwrap();
    let partition = store.partition("t", 0).unwrap();
    for value in ["0", "1", "2"] {
        partition.append(&[Record::new(value)], Acks::All).unwrap();
    }
    drop(store);
    disk
}

/// Appends to the log and reads the new record back, now and after another opening.
fn assert_an_append_is_read(disk: &SimDisk) {
    let read = |store: &Store, offset| {
        let records = store.partition("t", 0).unwrap().read(offset, ReadOptions::new()).unwrap();
        records.iter().next().unwrap().value().map(<[u8]>::to_vec)
    };
    let store = open(disk);
    let partition = store.partition("t", 0).unwrap();
    let at = partition.append(&[Record::new("new")], Acks::All).unwrap().offsets.start;
    assert_eq!(read(&store, at), Some(b"new".to_vec()));
    drop((store, partition));
    assert_eq!(read(&open(disk), at), Some(b"new".to_vec()), "opened again");
}

/// Found by `open_any_bytes`: the log goes on where it was proven to end, which is within the bytes of
/// the last batch once something has moved that. A reader that trusted the moved header's length
/// passed over the new record.
#[test]
fn s2_an_append_behind_batches_that_were_moved_can_be_read() {
    for (at, first_moved) in [(35, 0), (64 + 88, 1), (64 + 2 * 88, 2)] {
        for bytes in [4, 8, 40] {
            let disk = three_records();
            let mut contents = disk.read_file(LOG);
            assert_eq!(contents.len(), 64 + 3 * 88);
            contents.splice(at..at, vec![0xee; bytes]);
            disk.write_file(LOG, &contents);
            assert_an_append_is_read(&disk);
            let store = open(&disk);
            let partition = store.partition("t", 0).unwrap();
            for offset in 0..3 {
                match partition.read(Offset(offset), ReadOptions::new()) {
                    Ok(records) => {
                        let value = offset.to_string();
                        assert_eq!(records.iter().next().unwrap().value(), Some(value.as_bytes()));
                    }
                    Err(Error::Corrupt { offsets, .. }) => {
                        assert!(offset >= first_moved && offsets.contains(&Offset(offset)));
                        assert!(offsets.end <= Offset(3), "the new record is not damaged");
                    }
                    Err(error) => panic!("{error:?}"),
                }
            }
        }
    }
}

/// Found by `open_any_bytes`: a side file that was tampered with leaves a gap of offsets within a data
/// file; a reader found what came behind it only if more followed.
#[test]
fn s6_behind_a_gap_that_a_forged_side_file_makes_records_can_be_read() {
    let disk = three_records();
    let mut side = disk.read_file(SIDE);
    side[24..32].copy_from_slice(&1_000_000u64.to_le_bytes());
    let crc = crc32fast::hash(&side[..84]);
    side[84..88].copy_from_slice(&crc.to_le_bytes());
    disk.write_file(SIDE, &side);
    assert_an_append_is_read(&disk);
    let log = open(&disk);
    assert_eq!(log.partition("t", 0).unwrap().log_end_offset(), Offset(1_000_001));
}
