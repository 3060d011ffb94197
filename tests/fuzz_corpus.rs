//! The bodies of the fuzz targets on a stable toolchain: over samples that decode, over what a
//! fuzzer found before (`fuzz/regressions`), and over random changes of both.
#![cfg(feature = "simulation")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may fail loudly")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use oncelog::Compression;
use oncelog::simulation::fuzz;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound.max(1)
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(6) {
                0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                1 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                2 if !bytes.is_empty() => bytes.truncate(at),
                3 if bytes.len() > at + 4 => {
                    let value = [0, 1, u32::MAX, 0x7fff_ffff, 1 << 20][self.below(5)];
                    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
                }
                4 => bytes.insert(at.min(bytes.len()), u8::try_from(self.below(256)).unwrap()),
                _ => {
                    let from = self.below(bytes.len());
                    let part = bytes[from..].iter().take(16).copied().collect::<Vec<_>>();
                    bytes.extend(part);
                }
            }
        }
    }
}

fn regressions(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/regressions").join(target);
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .map(|entries| entries.map(|entry| entry.unwrap().path()).collect())
        .unwrap_or_default();
    files.sort();
    files.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn run(target: &str, body: fn(&[u8]), mut samples: Vec<Vec<u8>>, rounds: usize) {
    let seed = std::env::var("ONCELOG_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(3);
    eprintln!("replay with: ONCELOG_SEED={seed} cargo test --all-features --test fuzz_corpus");
    samples.extend(regressions(target));
    for sample in &samples {
        body(sample);
    }
    let mut random = Random(seed);
    for _ in 0..rounds {
        let mut bytes = samples[random.below(samples.len())].clone();
        random.change(&mut bytes);
        let outcome = catch_unwind(AssertUnwindSafe(|| body(&bytes)));
        assert!(outcome.is_ok(), "{target} failed on {bytes:02x?}");
    }
}

fn with_modes(bytes: &[u8]) -> Vec<Vec<u8>> {
    [0, 1].map(|mode| [&[mode], bytes].concat()).to_vec()
}

#[test]
fn any_bytes_as_a_batch() {
    let codecs = [Compression::None, Compression::Lz4, Compression::Zstd, Compression::Snappy];
    let samples = codecs.iter().flat_map(|codec| with_modes(&fuzz::sample_batch(*codec))).collect();
    run("batch", fuzz::batch, samples, 60_000);
}

#[test]
fn s6_any_bytes_as_a_side_file() {
    run("side_file", fuzz::side_file, vec![fuzz::sample_side_file()], 60_000);
}

#[test]
fn s7_any_bytes_as_a_metadata_log() {
    run("metadata", fuzz::metadata, with_modes(&fuzz::sample_metadata()), 30_000);
}

#[test]
fn s2_s15_any_bytes_in_any_file_of_a_store() {
    let mut samples = vec![b"\x00\x00\x00\x00".to_vec()];
    for file in 0..16 {
        for how in 0..3 {
            samples.push(
                [&[file, 0, 16, how], fuzz::sample_batch(Compression::None).as_slice()].concat(),
            );
        }
    }
    run("open_any_bytes", fuzz::open_any_bytes, samples, 6_000);
}
