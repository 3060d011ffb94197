//! The names of a directory tree that is kept in memory, with the answers of a Unix file system.
//!
//! Takes paths and yields nodes, or the changes that an operation comes down to; the caller applies
//! them, and may note them first: a power loss takes some of them back.
//!
//! A directory is known by a number, so renaming it moves what is in it along.
//!
//! Leaves to others: the files behind the numbers, and giving out numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// What a name stands for, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Directory(u64),
    File(u64),
}

/// The root's number.
pub(super) const ROOT: u64 = 0;

/// One name that comes to stand for something else, or for nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NameChange {
    pub(super) directory: u64,
    pub(super) name: String,
    pub(super) node: Option<Node>,
}

/// Directories by number, with their names.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    directories: BTreeMap<u64, BTreeMap<String, Node>>,
}

impl Names {
    /// What `path` stands for; `""` is the root.
    pub(super) fn resolve(&self, path: &str) -> io::Result<Node> {
        let mut node = Node::Directory(ROOT);
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let Node::Directory(directory) = node else {
                return Err(io::ErrorKind::NotADirectory.into());
            };
            node = self.get(directory, name).ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(node)
    }

    /// The directory that `path` is in, by number, and the last name.
    pub(super) fn locate<'a>(&self, path: &'a str) -> io::Result<(u64, &'a str)> {
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        if name.is_empty() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok((self.resolve_directory(directory)?, name))
    }

    /// The number of the directory at `path`.
    pub(super) fn resolve_directory(&self, path: &str) -> io::Result<u64> {
        match self.resolve(path)? {
            Node::Directory(number) => Ok(number),
            Node::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    pub(super) fn get(&self, directory: u64, name: &str) -> Option<Node> {
        self.directories.get(&directory)?.get(name).copied()
    }

    /// The names in a directory, sorted.
    pub(super) fn list(&self, directory: u64) -> impl Iterator<Item = (&str, Node)> {
        let names = self.directories.get(&directory);
        names.into_iter().flatten().map(|(name, node)| (name.as_str(), *node))
    }

    /// Gives `node` a name that is free.
    pub(super) fn create(&self, path: &str, node: Node) -> io::Result<NameChange> {
        let (directory, name) = self.locate(path)?;
        if self.get(directory, name).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        Ok(NameChange { directory, name: name.to_owned(), node: Some(node) })
    }

    /// Takes the name of a file away.
    pub(super) fn remove(&self, path: &str) -> io::Result<NameChange> {
        let (directory, name) = self.locate(path)?;
        match self.get(directory, name) {
            None => Err(io::ErrorKind::NotFound.into()),
            Some(Node::Directory(_)) => Err(io::ErrorKind::IsADirectory.into()),
            Some(Node::File(_)) => Ok(NameChange { directory, name: name.to_owned(), node: None }),
        }
    }

    /// Takes the name of an empty directory away.
    pub(super) fn remove_dir(&self, path: &str) -> io::Result<NameChange> {
        let (directory, name) = self.locate(path)?;
        match self.get(directory, name) {
            None => Err(io::ErrorKind::NotFound.into()),
            Some(Node::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            Some(Node::Directory(number)) if self.is_used(number) => {
                Err(io::ErrorKind::DirectoryNotEmpty.into())
            }
            Some(Node::Directory(_)) => {
                Ok(NameChange { directory, name: name.to_owned(), node: None })
            }
        }
    }

    /// Moves a file or directory, over whatever file or empty directory is there. The change of the
    /// new name comes last; none at all if both names are one.
    pub(super) fn rename(&self, from: &str, to: &str) -> io::Result<Vec<NameChange>> {
        let (from_directory, from_name) = self.locate(from)?;
        let (to_directory, to_name) = self.locate(to)?;
        let node = self.get(from_directory, from_name).ok_or(io::ErrorKind::NotFound)?;
        let target = self.get(to_directory, to_name);
        let is_inside = |path: &str, directory: &str| {
            path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
        };
        match (node, target) {
            _ if target == Some(node) => return Ok(Vec::new()),
            _ if is_inside(to, from) => return Err(io::ErrorKind::InvalidInput.into()),
            _ if is_inside(from, to) => return Err(io::ErrorKind::DirectoryNotEmpty.into()),
            (Node::Directory(_), Some(Node::File(_))) => {
                return Err(io::ErrorKind::NotADirectory.into());
            }
            (Node::File(_), Some(Node::Directory(_))) => {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            (Node::Directory(_), Some(Node::Directory(number))) if self.is_used(number) => {
                return Err(io::ErrorKind::DirectoryNotEmpty.into());
            }
            _ => {}
        }
        let change =
            |directory, name: &str, node| NameChange { directory, name: name.to_owned(), node };
        Ok(vec![change(from_directory, from_name, None), change(to_directory, to_name, Some(node))])
    }

    /// Makes a change, and returns what the name stood for.
    pub(super) fn apply(&mut self, change: &NameChange) -> Option<Node> {
        let names = self.directories.entry(change.directory).or_default();
        match change.node {
            Some(node) => names.insert(change.name.clone(), node),
            None => names.remove(&change.name),
        }
    }

    /// The paths of all files, sorted, with their numbers.
    pub(super) fn files(&self) -> Vec<(String, u64)> {
        let mut files = Vec::new();
        self.walk(|path, node| {
            if let Node::File(number) = node {
                files.push((path.to_owned(), number));
            }
        });
        files.sort();
        files
    }

    /// Forgets the directories that no path leads to.
    pub(super) fn forget_unreachable(&mut self) {
        let mut reached = BTreeSet::from([ROOT]);
        self.walk(|_, node| {
            if let Node::Directory(number) = node {
                reached.insert(number);
            }
        });
        self.directories.retain(|number, _| reached.contains(number));
    }

    fn is_used(&self, directory: u64) -> bool {
        self.directories.get(&directory).is_some_and(|names| !names.is_empty())
    }

    fn walk(&self, mut visit: impl FnMut(&str, Node)) {
        let mut pending = vec![(String::new(), ROOT)];
        while let Some((prefix, directory)) = pending.pop() {
            for (name, node) in self.list(directory) {
                let path = format!("{prefix}{name}");
                visit(&path, node);
                if let Node::Directory(number) = node {
                    pending.push((path + "/", number));
                }
            }
        }
    }
}
