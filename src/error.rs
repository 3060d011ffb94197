//! Every way a call can fail, what to do about it, and whether anything was written.
//!
//! Names only `types`, so that every layer can return it. Three questions are answered for each
//! variant by name, so that a new variant has to choose: [`Error::class`], [`Error::written`],
//! [`Error::kafka_name`].

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::types::{DiskId, Offset, ProducerEpoch, ProducerId, TopicPartition};

/// What every fallible call of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What an application can do about an [`Error`]. Each error has one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The same call may succeed later.
    Retriable,
    /// The transaction cannot be committed; abort it and begin anew.
    AbortTransaction,
    /// A newer holder took over; close this one.
    Fenced,
    /// The arguments do not fit; the same call fails again.
    Invalid,
    /// The store, a disk or the data is at fault; somebody has to look.
    Fatal,
}

/// Whether the records of a failed append are in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Written {
    /// They are not.
    No,
    /// They are. Unless they were acknowledged, they can go with their leader, where another takes over that lacks them.
    Yes,
    /// They may be, or may come to be, once; never in part, never twice.
    Unknown,
}

/// Why bytes are not what was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes end before the structure does.
    #[error("the bytes end early: {have} of {need}")]
    Short {
        /// Bytes that are there.
        have: u64,
        /// Bytes that the structure needs.
        need: u64,
    },
    /// A checksum disagrees.
    #[error("the checksum of the {0} disagrees")]
    Checksum(&'static str),
    /// A field holds a value it cannot hold.
    #[error("the field {0} is out of range")]
    Field(&'static str),
    /// The structure is intact and belongs somewhere else.
    #[error("the {0} belongs elsewhere")]
    Misplaced(&'static str),
    /// Offsets are missing: the file or a part of it is gone.
    #[error("the records are missing")]
    Missing,
    /// The codec is not compiled in, or refused the bytes.
    #[error("decompression: {0}")]
    Decompress(String),
}

/// Everything that can go wrong. `Debug` begins with the variant's name; `source()` gives the cause.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such topic, or it has no such partition.
    #[error("{partition}: no such topic or partition")]
    UnknownTopicOrPartition {
        /// What was asked for.
        partition: TopicPartition,
    },
    /// A topic of that name exists; nothing was changed.
    #[error("topic {topic} exists already")]
    TopicExists {
        /// The name.
        topic: String,
    },
    /// The topic's name cannot be used.
    #[error("topic name {topic:?}: {reason}")]
    InvalidTopic {
        /// The name.
        topic: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A setting is out of its range or does not fit another one.
    #[error("{key} = {value}: {reason}")]
    InvalidConfig {
        /// The setting, under Kafka's name where Kafka has it.
        key: String,
        /// What was given.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A record cannot be stored as it is.
    #[error("{partition}: record {index}: {reason}")]
    InvalidRecord {
        /// Where it was to go.
        partition: TopicPartition,
        /// Its place among the records of the call.
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The batch is larger than the topic allows; no I/O was done.
    #[error("{partition}: a batch of {bytes} bytes, at most {bytes_max} are allowed")]
    RecordTooLarge {
        /// Where it was to go.
        partition: TopicPartition,
        /// Encoded size in bytes.
        bytes: u64,
        /// The limit in bytes (`max.message.bytes`).
        bytes_max: u64,
    },
    /// The offset is not in the log.
    #[error("{partition}: offset {offset} is outside {start}..{end}")]
    OffsetOutOfRange {
        /// Where it was looked for.
        partition: TopicPartition,
        /// What was asked for.
        offset: Offset,
        /// The log start offset.
        start: Offset,
        /// The end of what can be asked for.
        end: Offset,
    },
    /// Nothing was written; retry once a replica has caught up.
    #[error("{partition}: {in_sync} replicas in sync, {required} required")]
    NotEnoughReplicas {
        /// The partition.
        partition: TopicPartition,
        /// Replicas in sync.
        in_sync: u16,
        /// `min.insync.replicas`.
        required: u16,
    },
    /// The records are in the leader's log, with fewer copies than asked for.
    #[error("{partition}: {in_sync} replicas in sync after the append, {required} required")]
    NotEnoughReplicasAfterAppend {
        /// The partition.
        partition: TopicPartition,
        /// Where the records are.
        offsets: Range<Offset>,
        /// Replicas in sync.
        in_sync: u16,
        /// `min.insync.replicas`.
        required: u16,
    },
    /// No replica can lead the partition now.
    #[error("{partition}: no replica can lead")]
    NoLeader {
        /// The partition.
        partition: TopicPartition,
    },
    /// The wait ended before what was waited for came.
    #[error("{what}: not done after {timeout:?}")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        timeout: Duration,
        /// The offsets of an append that is in the log but not acknowledged yet.
        appended: Option<Range<Offset>>,
        /// Whether what was asked for may still come about: of a delivery, or of a decision, that is under way.
        written: Written,
    },
    /// After an unclean election the log does not have what this consumer has read: it is another one from
    /// `diverged_at` on. Seek there, or to where the application wants to go on.
    #[error("{partition}: what was read up to {position} is gone from {diverged_at} on")]
    Diverged {
        /// The partition.
        partition: TopicPartition,
        /// Where the consumer was.
        position: Offset,
        /// Up to where the logs agree.
        diverged_at: Offset,
    },
    /// Records between the last batch and this one are missing.
    #[error("{partition}: producer {id}: sequence {given}, expected {expected}")]
    OutOfOrderSequence {
        /// The partition.
        partition: TopicPartition,
        /// The producer.
        id: ProducerId,
        /// The next sequence of the producer.
        expected: u64,
        /// What it sent.
        given: u64,
    },
    /// The batch was appended before, too long ago to know its offsets.
    #[error("{partition}: producer {id}: sequence {given} was appended before")]
    DuplicateSequence {
        /// The partition.
        partition: TopicPartition,
        /// The producer.
        id: ProducerId,
        /// What it sent.
        given: u64,
    },
    /// A newer producer took over this identity; close this one.
    #[error("producer {id} at epoch {epoch} was fenced by epoch {current}")]
    ProducerFenced {
        /// The producer.
        id: ProducerId,
        /// Its epoch.
        epoch: ProducerEpoch,
        /// The epoch that reigns.
        current: ProducerEpoch,
    },
    /// The partition does not know the producer, and it does not begin at sequence 0.
    #[error("{partition}: producer {id} is not known")]
    UnknownProducer {
        /// The partition.
        partition: TopicPartition,
        /// The producer.
        id: ProducerId,
    },
    /// The transaction cannot do that in its state.
    #[error("transaction {id}: {reason}")]
    InvalidTransactionState {
        /// The transactional id.
        id: String,
        /// What does not fit.
        reason: String,
    },
    /// The transaction was aborted; begin anew.
    #[error("transaction {id} was aborted: {reason}")]
    TransactionAborted {
        /// The transactional id.
        id: String,
        /// Why.
        reason: String,
    },
    /// The group has committed no offset and the consumer has no start.
    #[error("{partition}: group {group} has no committed offset")]
    NoOffset {
        /// The partition.
        partition: TopicPartition,
        /// The group.
        group: String,
    },
    /// The group has moved on to a newer generation.
    #[error("group {group}: generation {given}, now at {current}")]
    IllegalGeneration {
        /// The group.
        group: String,
        /// The generation of the call.
        given: u64,
        /// The generation of the group.
        current: u64,
    },
    /// The consumer is no member of the group any more: it has stopped polling, or another took its place.
    #[error("group {group}: {reason}")]
    UnknownMember {
        /// The group.
        group: String,
        /// What has happened.
        reason: String,
    },
    /// The partition is not the consumer's.
    #[error("{partition} is not assigned to this consumer")]
    NotAssigned {
        /// The partition.
        partition: TopicPartition,
    },
    /// There is no such group.
    #[error("no such group: {group}")]
    UnknownGroup {
        /// The group.
        group: String,
    },
    /// The group has members, which are in the way of what was asked for.
    #[error("group {group} has members")]
    GroupNotEmpty {
        /// The group.
        group: String,
    },
    /// The group is being rebalanced; poll, then retry.
    #[error("group {group} is being rebalanced")]
    RebalanceInProgress {
        /// The group.
        group: String,
    },
    /// The producer's memory is full and the call would not wait.
    #[error("the producer's buffer of {bytes_max} bytes is full")]
    BufferFull {
        /// `buffer.memory`.
        bytes_max: u64,
    },
    /// The file system has no room; nothing was written, and the call works again once it has.
    #[error("{}: no space left", .path.display())]
    NoSpace {
        /// The file that could not grow.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// A call to the file system failed.
    #[error("{}: {action}", .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// Whether the records of an append may be in the log.
        written: Written,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// The bytes on this disk are not what was written. Records around `offsets` can be read.
    #[error("{partition}: offsets {}..{} are damaged ({} at byte {position})",
        .offsets.start, .offsets.end, .path.display())]
    Corrupt {
        /// The partition.
        partition: TopicPartition,
        /// What cannot be read; seek to its end to go on behind it.
        offsets: Range<Offset>,
        /// The file.
        path: PathBuf,
        /// The byte in the file where the damage begins.
        position: u64,
        /// What does not fit.
        source: DecodeError,
    },
    /// A file that the store as a whole depends on is damaged beyond its copies.
    #[error("{}: damaged at byte {position}", .path.display())]
    CorruptMetadata {
        /// The file.
        path: PathBuf,
        /// The byte where the damage begins.
        position: u64,
        /// What does not fit.
        source: DecodeError,
    },
    /// The replica was taken out of service after its disk failed; `at_risk` was not flushed.
    #[error("{partition}: {disk} is offline since {cause}")]
    DiskOffline {
        /// The partition.
        partition: TopicPartition,
        /// The disk.
        disk: DiskId,
        /// Offsets that were written and not known to be on stable storage.
        at_risk: Range<Offset>,
        /// What took it offline.
        cause: Arc<str>,
        /// Whether the records of an append may be in the log.
        written: Written,
    },
    /// A disk of the store is not there, and it may hold newer decisions.
    #[error("{disk} is missing: {}", .path.display())]
    MissingDisk {
        /// The disk.
        disk: DiskId,
        /// Where it was expected.
        path: PathBuf,
    },
    /// Another opener holds the directory.
    #[error("{} is locked{}", .path.display(), .pid.map_or(String::new(), |pid| format!(" by process {pid}")))]
    Locked {
        /// The directory.
        path: PathBuf,
        /// Who holds it, as it wrote it down.
        pid: Option<u32>,
    },
    /// The directory was written by a newer version, or is no store.
    #[error("{}: {reason}", .path.display())]
    UnsupportedFormat {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The store was opened to read only.
    #[error("the store is open to read only")]
    ReadOnly,
    /// The store, or the handle, is closed. A process that forked has to open its own.
    #[error("the store is closed")]
    Closed,
}

impl Error {
    /// What can be done about it.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::NotEnoughReplicas { .. }
            | Self::NotEnoughReplicasAfterAppend { .. }
            | Self::NoLeader { .. }
            | Self::TimedOut { .. }
            | Self::RebalanceInProgress { .. }
            | Self::BufferFull { .. }
            | Self::NoSpace { .. }
            | Self::Locked { .. } => ErrorClass::Retriable,
            Self::OutOfOrderSequence { .. }
            | Self::UnknownProducer { .. }
            | Self::InvalidTransactionState { .. }
            | Self::TransactionAborted { .. } => ErrorClass::AbortTransaction,
            Self::ProducerFenced { .. }
            | Self::IllegalGeneration { .. }
            | Self::UnknownMember { .. } => ErrorClass::Fenced,
            Self::UnknownTopicOrPartition { .. }
            | Self::TopicExists { .. }
            | Self::InvalidTopic { .. }
            | Self::InvalidConfig { .. }
            | Self::InvalidRecord { .. }
            | Self::RecordTooLarge { .. }
            | Self::OffsetOutOfRange { .. }
            | Self::DuplicateSequence { .. }
            | Self::NoOffset { .. }
            | Self::Diverged { .. }
            | Self::NotAssigned { .. }
            | Self::UnknownGroup { .. }
            | Self::GroupNotEmpty { .. }
            | Self::ReadOnly => ErrorClass::Invalid,
            Self::Io { source, .. } => {
                if is_passing(source) {
                    ErrorClass::Retriable
                } else {
                    ErrorClass::Fatal
                }
            }
            Self::Corrupt { .. }
            | Self::CorruptMetadata { .. }
            | Self::DiskOffline { .. }
            | Self::MissingDisk { .. }
            | Self::UnsupportedFormat { .. }
            | Self::Closed => ErrorClass::Fatal,
        }
    }

    /// Whether the records of the append that failed are in the log; of a commit, whether it is, or may be, made all the same;
    /// of a change of topics, replicas, disks, or of who holds a name or an id, whether the next opening has it, or may have
    /// it. `No` for every other call.
    #[must_use]
    pub fn written(&self) -> Written {
        match self {
            Self::NotEnoughReplicasAfterAppend { .. } => Written::Yes,
            Self::TimedOut { written, .. }
            | Self::Io { written, .. }
            | Self::DiskOffline { written, .. } => *written,
            Self::DuplicateSequence { .. } => Written::Yes,
            Self::UnknownTopicOrPartition { .. }
            | Self::TopicExists { .. }
            | Self::InvalidTopic { .. }
            | Self::InvalidConfig { .. }
            | Self::InvalidRecord { .. }
            | Self::RecordTooLarge { .. }
            | Self::OffsetOutOfRange { .. }
            | Self::NotEnoughReplicas { .. }
            | Self::NoLeader { .. }
            | Self::OutOfOrderSequence { .. }
            | Self::ProducerFenced { .. }
            | Self::UnknownProducer { .. }
            | Self::InvalidTransactionState { .. }
            | Self::TransactionAborted { .. }
            | Self::NoOffset { .. }
            | Self::Diverged { .. }
            | Self::IllegalGeneration { .. }
            | Self::UnknownMember { .. }
            | Self::NotAssigned { .. }
            | Self::UnknownGroup { .. }
            | Self::GroupNotEmpty { .. }
            | Self::RebalanceInProgress { .. }
            | Self::BufferFull { .. }
            | Self::NoSpace { .. }
            | Self::Corrupt { .. }
            | Self::CorruptMetadata { .. }
            | Self::MissingDisk { .. }
            | Self::Locked { .. }
            | Self::UnsupportedFormat { .. }
            | Self::ReadOnly
            | Self::Closed => Written::No,
        }
    }

    /// The name under which a Kafka user knows it.
    #[must_use]
    pub fn kafka_name(&self) -> &'static str {
        match self {
            Self::UnknownTopicOrPartition { .. } => "UNKNOWN_TOPIC_OR_PARTITION",
            Self::TopicExists { .. } => "TOPIC_ALREADY_EXISTS",
            Self::InvalidTopic { .. } => "INVALID_TOPIC_EXCEPTION",
            Self::InvalidConfig { .. } => "INVALID_CONFIG",
            Self::InvalidRecord { .. } => "INVALID_RECORD",
            Self::RecordTooLarge { .. } => "MESSAGE_TOO_LARGE",
            Self::OffsetOutOfRange { .. } => "OFFSET_OUT_OF_RANGE",
            Self::NotEnoughReplicas { .. } => "NOT_ENOUGH_REPLICAS",
            Self::NotEnoughReplicasAfterAppend { .. } => "NOT_ENOUGH_REPLICAS_AFTER_APPEND",
            Self::NoLeader { .. } => "LEADER_NOT_AVAILABLE",
            Self::TimedOut { .. } => "REQUEST_TIMED_OUT",
            Self::OutOfOrderSequence { .. } => "OUT_OF_ORDER_SEQUENCE_NUMBER",
            Self::DuplicateSequence { .. } => "DUPLICATE_SEQUENCE_NUMBER",
            Self::ProducerFenced { .. } => "PRODUCER_FENCED",
            Self::UnknownProducer { .. } => "UNKNOWN_PRODUCER_ID",
            Self::InvalidTransactionState { .. } => "INVALID_TXN_STATE",
            Self::TransactionAborted { .. } => "TRANSACTION_ABORTABLE",
            Self::NoOffset { .. } => "NO_OFFSET_FOR_PARTITION",
            Self::Diverged { .. } => "LOG_TRUNCATION",
            Self::IllegalGeneration { .. } => "ILLEGAL_GENERATION",
            Self::UnknownMember { .. } => "UNKNOWN_MEMBER_ID",
            Self::NotAssigned { .. } => "NO_CURRENT_ASSIGNMENT",
            Self::UnknownGroup { .. } => "GROUP_ID_NOT_FOUND",
            Self::GroupNotEmpty { .. } => "NON_EMPTY_GROUP",
            Self::RebalanceInProgress { .. } => "REBALANCE_IN_PROGRESS",
            Self::BufferFull { .. } => "BUFFER_EXHAUSTED",
            Self::NoSpace { .. }
            | Self::Io { .. }
            | Self::DiskOffline { .. }
            | Self::MissingDisk { .. }
            | Self::Locked { .. } => "KAFKA_STORAGE_ERROR",
            Self::Corrupt { .. } | Self::CorruptMetadata { .. } => "CORRUPT_MESSAGE",
            Self::UnsupportedFormat { .. } => "UNSUPPORTED_VERSION",
            Self::ReadOnly => "POLICY_VIOLATION",
            Self::Closed => "BROKER_NOT_AVAILABLE",
        }
    }

    /// The time is over, and nothing was done.
    pub(crate) fn late(what: impl Into<String>, timeout: Duration) -> Self {
        Self::TimedOut { what: what.into(), timeout, appended: None, written: Written::No }
    }

    /// The time is over, and what was asked for may have been done, or be done later.
    pub(crate) fn in_doubt(what: impl Into<String>, timeout: Duration) -> Self {
        Self::TimedOut { what: what.into(), timeout, appended: None, written: Written::Unknown }
    }

    /// The time is over for records that are in the log.
    pub(crate) fn unacknowledged(
        what: impl Into<String>,
        timeout: Duration,
        offsets: Range<Offset>,
    ) -> Self {
        let written = Written::Yes;
        Self::TimedOut { what: what.into(), timeout, appended: Some(offsets), written }
    }

    /// What a call ran into before it wrote anything: a wait for records of others, or a change that it needed.
    pub(crate) fn of_others(self) -> Self {
        match self {
            Self::TimedOut { what, timeout, .. } => Self::late(what, timeout),
            Self::NotEnoughReplicasAfterAppend { partition, in_sync, required, .. } => {
                Self::NotEnoughReplicas { partition, in_sync, required }
            }
            Self::Io { path, action, source, .. } => {
                Self::Io { path, action, written: Written::No, source }
            }
            Self::DiskOffline { partition, disk, at_risk, cause, .. } => {
                Self::DiskOffline { partition, disk, at_risk, cause, written: Written::No }
            }
            error => error,
        }
    }

    /// Whether the leader failed with the append, so that another may take it.
    pub(crate) fn is_of_leader(&self) -> bool {
        matches!(self, Self::NoLeader { .. } | Self::Io { written: Written::Unknown, .. })
    }

    /// What is known after another try: that nothing of the first is in the log, that one cannot tell.
    pub(crate) fn or_still(self, again: Self) -> Self {
        if again.written() == Written::No && self.written() != Written::No { self } else { again }
    }

    /// Names the file and the action that the system refused.
    pub(crate) fn io(path: impl Into<PathBuf>, action: &'static str, source: io::Error) -> Self {
        let path = path.into();
        if is_out_of_space(&source) {
            return Self::NoSpace { path, source: Arc::new(source) };
        }
        Self::Io { path, action, written: Written::No, source: Arc::new(source) }
    }
}

/// Whether the system refused for want of room: `ENOSPC`, `EDQUOT`, `EFBIG`.
pub(crate) fn is_out_of_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// Whether the system refused for want of descriptors, memory or time: the same call may succeed later.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::OutOfMemory | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    ) || matches!(error.raw_os_error(), Some(code) if code == 23 || code == 24) // ENFILE, EMFILE
}
