//! The three disks give the same answers: one random script runs on each, and what each call
//! returned, what each error was and what is left in the end are compared.
//!
//! The real disk is the judge. Where it cannot be had (under miri), the other two judge each other.

use std::io;
use std::sync::Arc;

use super::names::NameChange;
use super::simulated::SimDisk;
use super::{
    Disk, DiskLock, EntryKind, File, Mapping, MemoryDisk, OpenMode, read_full_at, read_small,
};

const SLOTS: usize = 4;
/// No file of a script is longer, so that a file in memory that is mapped has room to grow.
const FILE_BYTES_MAX: u64 = 16 << 10;
const PATHS: &[&str] = &["a", "b", "d", "e", "d/a", "d/b", "d/e", "e/a", "d/e/a", "x/a", "a/b"];

/// Draws a script; small and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % bound
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.index(choices.len())]
    }

    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap()
    }
}

#[derive(Clone, Debug)]
enum Call {
    Open(usize, &'static str, OpenMode),
    Close(usize),
    CreateDir(&'static str),
    Rename(&'static str, &'static str),
    Remove(&'static str),
    RemoveDir(&'static str),
    List(&'static str),
    SyncDir(&'static str),
    Lock(usize, &'static str),
    Unlock(usize),
    Len(usize),
    Read(usize, u64, usize),
    Write(usize, u64, Vec<u8>),
    Allocate(usize, u64, u64),
    SetLen(usize, u64),
    Sync(usize),
    Map(usize, bool),
    Unmap(usize),
    Store(usize, u64, Vec<u8>),
    StoreWord(usize, u64, u32),
    Load(usize),
}

impl Call {
    fn draw(random: &mut Random) -> Self {
        let slot = random.index(SLOTS);
        let path = random.pick(PATHS);
        let position = random.below(FILE_BYTES_MAX / 2);
        let bytes = vec![
            u8::try_from(1 + random.below(255)).unwrap();
            usize::try_from(random.below(3000)).unwrap()
        ];
        match random.below(32) {
            0..5 => {
                let modes = [OpenMode::Create, OpenMode::Create, OpenMode::Write, OpenMode::Read];
                Self::Open(slot, path, random.pick(&modes))
            }
            5 => Self::Close(slot),
            6 | 7 => Self::CreateDir(path),
            8 | 9 => Self::Rename(path, random.pick(PATHS)),
            10 => Self::Remove(path),
            11 => Self::RemoveDir(path),
            12 => Self::List(random.pick(&["", "d", "e", "a", "d/e", "x"])),
            13 => Self::SyncDir(random.pick(&["", "d", "x"])),
            14 => Self::Lock(slot, path),
            15 => Self::Unlock(slot),
            16 => Self::Len(slot),
            17 | 18 => Self::Read(slot, position, bytes.len()),
            19..22 => Self::Write(slot, position, bytes),
            22 => Self::Allocate(slot, position, random.below(FILE_BYTES_MAX / 2)),
            23 => Self::Allocate(slot, u64::MAX - 1, 2),
            24 => Self::SetLen(slot, random.below(FILE_BYTES_MAX)),
            25 => Self::Sync(slot),
            26 | 27 => Self::Map(slot, random.below(3) > 0),
            28 => Self::Unmap(slot),
            29 => Self::Store(slot, position, bytes),
            30 => Self::StoreWord(slot, position / 4 * 4, u32::try_from(position).unwrap()),
            _ => Self::Load(slot),
        }
    }
}

struct Mapped {
    file: Arc<dyn File>,
    map: Mapping,
    writable: bool,
}

impl Mapped {
    /// Bytes that may be touched: within the mapping and the file.
    fn len(&self) -> usize {
        self.map.len().min(usize::try_from(self.file.len().unwrap()).unwrap())
    }
}

/// A disk and what a script holds of it.
struct Machine {
    name: &'static str,
    disk: Arc<dyn Disk>,
    files: [Option<Arc<dyn File>>; SLOTS],
    maps: [Option<Mapped>; SLOTS],
    locks: [Option<Box<dyn DiskLock>>; SLOTS],
}

type Answer = Result<String, io::ErrorKind>;

fn answer<T>(result: io::Result<T>, show: impl FnOnce(T) -> String) -> Answer {
    result.map(show).map_err(|error| error.kind())
}

/// What a call that only succeeds or fails answers.
fn done(result: io::Result<()>) -> Answer {
    answer(result, |()| String::new())
}

/// Keeps what a call gave.
fn keep<T>(result: io::Result<T>, slot: &mut Option<T>) -> Answer {
    done(result.map(|given| *slot = Some(given)))
}

fn let_go<T>(slot: &mut Option<T>) -> Answer {
    *slot = None;
    Ok(String::new())
}

impl Machine {
    fn new(name: &'static str, disk: Arc<dyn Disk>) -> Self {
        let empty = <[Option<Mapped>; SLOTS]>::default();
        Self { name, disk, files: Default::default(), maps: empty, locks: Default::default() }
    }

    fn run(&mut self, call: &Call) -> Answer {
        match *call {
            Call::Open(slot, path, mode) => keep(self.disk.open(path, mode), &mut self.files[slot]),
            Call::Close(slot) => let_go(&mut self.files[slot]),
            Call::CreateDir(path) => done(self.disk.create_dir(path)),
            Call::Rename(from, to) => done(self.disk.rename(from, to)),
            Call::Remove(path) => done(self.disk.remove(path)),
            Call::RemoveDir(path) => done(self.disk.remove_dir(path)),
            Call::List(path) => answer(self.disk.list(path), |entries| format!("{entries:?}")),
            Call::SyncDir(path) => done(self.disk.sync_dir(path)),
            Call::Lock(slot, path) => keep(self.disk.lock(path, "a note"), &mut self.locks[slot]),
            Call::Unlock(slot) => let_go(&mut self.locks[slot]),
            Call::Unmap(slot) => let_go(&mut self.maps[slot]),
            Call::Store(slot, position, ref bytes) => Ok(self.store(slot, position, |map, at| {
                if at + bytes.len() <= map.len() {
                    map.map.put(at, bytes);
                }
            })),
            Call::StoreWord(slot, position, word) => Ok(self.store(slot, position, |map, at| {
                if at + 4 <= map.len() {
                    map.map.publish_u32(at, word);
                    assert_eq!(map.map.bytes(at..at + 4), word.to_le_bytes());
                }
            })),
            Call::Load(slot) => Ok(match &self.maps[slot] {
                None => String::new(),
                Some(map) => format!("{:?}", map.map.bytes(0..map.len())),
            }),
            _ => self.run_on_file(call),
        }
    }

    fn store(&self, slot: usize, position: u64, put: impl FnOnce(&Mapped, usize)) -> String {
        if let Some(map) = self.maps[slot].as_ref().filter(|map| map.writable) {
            put(map, usize::try_from(position).unwrap());
        }
        String::new()
    }

    fn run_on_file(&mut self, call: &Call) -> Answer {
        let (Call::Len(slot)
        | Call::Read(slot, ..)
        | Call::Write(slot, ..)
        | Call::Allocate(slot, ..)
        | Call::SetLen(slot, _)
        | Call::Sync(slot)
        | Call::Map(slot, _)) = *call
        else {
            panic!("{call:?} is no call on a file");
        };
        let Some(file) = self.files[slot].clone() else {
            return Ok("not open".to_owned());
        };
        match *call {
            Call::Read(_, position, len) => {
                let mut bytes = vec![0; len];
                let count = read_full_at(&*file, position, &mut bytes);
                answer(count, |count| format!("{count} {bytes:?}"))
            }
            Call::Write(_, position, ref bytes) => {
                answer(file.write_at(position, bytes), |count| count.to_string())
            }
            Call::Allocate(_, position, len) => done(file.allocate(position, len)),
            Call::SetLen(_, len) => done(file.set_len(len)),
            Call::Sync(_) => done(file.sync_data()),
            Call::Map(_, writable) => {
                let map = file.map(usize::try_from(FILE_BYTES_MAX).unwrap(), writable);
                keep(map.map(|map| Mapped { file, map, writable }), &mut self.maps[slot])
            }
            _ => answer(file.len(), |len| len.to_string()),
        }
    }

    /// All names and bytes.
    fn contents(&self) -> Vec<(String, Vec<u8>)> {
        let mut found = Vec::new();
        let mut pending = vec![String::new()];
        while let Some(directory) = pending.pop() {
            for entry in self.disk.list(&directory).unwrap() {
                let slash = if directory.is_empty() { "" } else { "/" };
                let path = format!("{directory}{slash}{}", entry.name);
                match entry.kind {
                    EntryKind::Directory => {
                        found.push((path.clone(), b"a directory".to_vec()));
                        pending.push(path);
                    }
                    _ => {
                        let bytes = read_small(&*self.disk, &path, usize::MAX).unwrap();
                        assert_eq!(bytes.len() as u64, entry.len, "{}: {path}", self.name);
                        found.push((path, bytes));
                    }
                }
            }
        }
        found.sort();
        found
    }
}

fn run_script(seed: u64, calls: usize) {
    let mut machines = vec![
        Machine::new("memory", Arc::new(MemoryDisk::new())),
        Machine::new("simulated", Arc::new(SimDisk::new(seed))),
    ];
    #[cfg(not(miri))]
    let directory = super::temporary_directory().unwrap();
    #[cfg(not(miri))]
    {
        let disk = super::RealDisk::open(directory.path(), false).unwrap();
        machines.insert(0, Machine::new("real", Arc::new(disk)));
    }
    let mut random = Random(seed);
    for at in 0..calls {
        let call = Call::draw(&mut random);
        let answers: Vec<_> = machines.iter_mut().map(|machine| machine.run(&call)).collect();
        for (machine, answer) in machines.iter().zip(&answers) {
            assert!(
                *answer == answers[0],
                "seed {seed}, call {at}, {call:?}:\n{}: {:?}\n{}: {answer:?}",
                machines[0].name,
                answers[0],
                machine.name,
            );
        }
    }
    let expected = machines[0].contents();
    for machine in &machines[1..] {
        let found = machine.contents();
        assert!(found == expected, "seed {seed}: {} ends up otherwise", machine.name);
    }
}

#[test]
fn the_same_script_gives_the_same_answers_and_the_same_files_on_every_disk() {
    let (seeds, calls) = if cfg!(miri) { (3, 100) } else { (400, 300) };
    for seed in 0..seeds {
        run_script(seed, calls);
    }
}

#[test]
fn the_scripts_get_far_enough_to_compare_something() {
    let mut machine = Machine::new("memory", Arc::new(MemoryDisk::new()));
    let (mut refused, mut stored, mut renamed) = (0, 0, 0);
    let mut random = Random(1);
    for _ in 0..3000 {
        let call = Call::draw(&mut random);
        let answer = machine.run(&call);
        refused += usize::from(answer.is_err());
        renamed += usize::from(matches!(call, Call::Rename(..)) && answer.is_ok());
        if let Call::Load(slot) = call {
            let map = machine.maps[slot].as_ref();
            stored += usize::from(map.is_some_and(|map| map.len() > 0));
        }
    }
    assert!(refused > 100 && stored > 20 && renamed > 20, "{refused} {stored} {renamed}");
}

#[test]
fn a_directory_that_is_renamed_takes_what_is_in_it_along() {
    let disks: [Arc<dyn Disk>; 2] = [Arc::new(MemoryDisk::new()), Arc::new(SimDisk::new(1))];
    for disk in disks {
        disk.create_dir("d").unwrap();
        disk.open("d/a", OpenMode::Create).unwrap().write_at(0, b"pear").unwrap();
        disk.rename("d", "e").unwrap();
        assert_eq!(read_small(&*disk, "e/a", 10).unwrap(), b"pear");
        assert_eq!(disk.list("d").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}

#[test]
fn both_names_of_a_rename_change_and_the_new_one_last() {
    let mut names = super::names::Names::default();
    let file = super::names::Node::File(1);
    let created = names.create("a", file).unwrap();
    names.apply(&created);
    let changes = names.rename("a", "b").unwrap();
    let change = |name: &str, node| NameChange { directory: 0, name: name.to_owned(), node };
    assert_eq!(changes, [change("a", None), change("b", Some(file))]);
    assert_eq!(names.rename("a", "a").unwrap(), []);
}

#[cfg(all(unix, not(miri)))]
mod unix {
    use super::*;
    use crate::storage::RealDisk;

    fn disk() -> (super::super::TemporaryDirectory, RealDisk) {
        let directory = super::super::temporary_directory().unwrap();
        let disk = RealDisk::open(directory.path().join("of/a/store"), true).unwrap();
        (directory, disk)
    }

    #[test]
    fn s15_links_pipes_and_directories_under_our_names_are_refused_without_waiting() {
        let (_directory, disk) = disk();
        std::fs::write(disk.root().join("elsewhere"), b"not ours").unwrap();
        std::os::unix::fs::symlink(disk.root().join("elsewhere"), disk.root().join("link"))
            .unwrap();
        let pipe = std::ffi::CString::new(disk.root().join("pipe").to_str().unwrap()).unwrap();
        // SAFETY: the path ends in a zero byte.
        assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
        disk.create_dir("directory").unwrap();
        for path in ["link", "pipe", "directory"] {
            for mode in [OpenMode::Read, OpenMode::Write] {
                let error = disk.open(path, mode).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path} {mode:?}");
            }
            let error = disk.lock(path, "a note").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path}");
        }
        assert_eq!(std::fs::read(disk.root().join("elsewhere")).unwrap(), b"not ours");
        let kinds: Vec<_> =
            disk.list("").unwrap().into_iter().map(|entry| (entry.name, entry.kind)).collect();
        let expected = [
            ("directory", EntryKind::Directory),
            ("elsewhere", EntryKind::File),
            ("link", EntryKind::Other),
            ("pipe", EntryKind::Other),
        ];
        assert_eq!(kinds, expected.map(|(name, kind)| (name.to_owned(), kind)));
    }

    #[test]
    fn a_temporary_directory_is_empty_and_goes_with_its_guard() {
        let directory = super::super::temporary_directory().unwrap();
        let path = directory.path().to_owned();
        let disk = RealDisk::open(&path, false).unwrap();
        assert!(disk.list("").unwrap().is_empty());
        disk.create_dir("d").unwrap();
        drop(disk.open("d/a", OpenMode::Create).unwrap());
        drop(directory);
        assert!(!path.exists());
        assert_eq!(RealDisk::open(path, false).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_was_allocated_takes_room_and_reads_as_zero() {
        use std::os::unix::fs::MetadataExt;
        let (_directory, disk) = disk();
        let file = disk.open("a", OpenMode::Create).unwrap();
        file.allocate(0, 1 << 20).unwrap();
        assert_eq!(file.len().unwrap(), 1 << 20);
        let facts = std::fs::metadata(disk.root().join("a")).unwrap();
        if cfg!(target_os = "linux") {
            assert!(facts.blocks() * 512 >= 1 << 20, "{} blocks", facts.blocks());
        }
        let mut bytes = [1; 4096];
        assert_eq!(read_full_at(&*file, 1 << 19, &mut bytes).unwrap(), 4096);
        assert_eq!(bytes, [0; 4096]);
    }

    #[test]
    fn no_two_draws_of_entropy_are_alike() {
        let (_directory, disk) = disk();
        let draws: std::collections::BTreeSet<u128> = (0..100).map(|_| disk.entropy()).collect();
        assert_eq!(draws.len(), 100);
        if cfg!(target_os = "linux") {
            assert_ne!(disk.boot_id(), 0);
        }
    }
}
