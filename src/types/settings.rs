//! The choices that several layers share.

use std::time::Duration;

/// Whom an append waits for before it is acknowledged (Kafka's `acks`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Acks {
    /// 0: nobody; the record is handed to the log and may be lost.
    None,
    /// 1: the leader's log holds it, flushed as the topic's [`Flush`] level says.
    Leader,
    /// -1: every in-sync replica holds it, and at least `min_insync_replicas` of them are there.
    #[default]
    All,
}

/// When appended bytes are forced to stable storage, which decides what a power loss can take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Flush {
    /// Before the acknowledgement: one `fdatasync` serves every append waiting behind it.
    #[default]
    OnAck,
    /// In the background, at least once in this time while there is something to flush.
    Interval(Duration),
    /// When the operating system chooses: survives the death of the process, not of the machine.
    Os,
}

impl Flush {
    /// How long what was appended may be out of stable storage.
    pub(crate) fn exposure(self) -> Duration {
        match self {
            Self::OnAck => Duration::ZERO,
            Self::Interval(span) => span,
            Self::Os => Duration::MAX,
        }
    }

    /// The same in nanoseconds; what is longer than 584 years is all alike.
    pub(crate) fn exposure_nanos(self) -> u64 {
        u64::try_from(self.exposure().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The one that exposes less.
    pub(crate) fn stricter(self, other: Self) -> Self {
        if other.exposure() < self.exposure() { other } else { self }
    }
}

/// Which records a read may return (KIP-98).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Isolation {
    /// Everything below the high watermark.
    #[default]
    ReadUncommitted,
    /// Below the last stable offset, without records of aborted transactions.
    ReadCommitted,
}

/// How the bytes of a batch's records are packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compression {
    /// As they are.
    #[default]
    None,
    /// LZ4 block format; needs the crate's feature `lz4`.
    Lz4,
    /// Zstandard; needs the crate's feature `zstd`.
    Zstd,
    /// Snappy raw format; needs the crate's feature `snappy`.
    Snappy,
}

/// Who stamps the records of a topic (Kafka's `message.timestamp.type`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TimestampType {
    /// The application, or the clock at the append when it gave none.
    #[default]
    CreateTime,
    /// The log, at the append; what the application gave is replaced.
    AppendTime,
}

/// How bytes reach the files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum StorageMode {
    /// What is fastest where it is safe: a mapping for the active segment, plain reads for sealed ones. Written plainly is
    /// what lies on a file system that stores each page in a new place (btrfs, ZFS), or that is not known: a mapping
    /// would find no room on a full disk.
    #[default]
    Auto,
    /// Mappings for sealed segments as well: no copy, but a failing disk shows as `SIGBUS`.
    Mmap,
    /// Plain reads and writes only: no mapping that a failing disk or another program could break. Others are careful (a
    /// disk that fails within 0.2 s of its last word may still show as `SIGBUS`); this cannot happen here.
    Write,
}
