//! The settings of a topic.

use std::time::Duration;

use crate::error::{DecodeError, Error};
use crate::types::{Compression, Flush, Timestamp, TimestampType};

use super::Retention;

const PARTITIONS_MAX: u32 = 1_000_000;
const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = 4096..=(1 << 31) - 4096;
const BATCH_BYTES: std::ops::RangeInclusive<u32> = 1024..=(1 << 30);
const INDEX_INTERVAL: std::ops::RangeInclusive<u32> = 64..=(1 << 20);

/// The settings of a topic. Made with [`TopicConfig::new`], changed by methods that return it.
///
/// | setting | default | Kafka's key |
/// |---|---|---|
/// | [`partitions`](Self::partitions) | 1 | `num.partitions` |
/// | [`replication_factor`](Self::replication_factor) | 1 | `default.replication.factor` |
/// | [`min_insync_replicas`](Self::min_insync_replicas) | 1 | `min.insync.replicas` |
/// | [`flush`](Self::flush) | [`Flush::OnAck`] | `flush.messages`, `flush.ms` |
/// | [`retention`](Self::retention) | forever | `retention.ms`, `retention.bytes` |
/// | [`segment_bytes`](Self::segment_bytes) | 256 MiB | `segment.bytes` |
/// | [`segment_age`](Self::segment_age) | 7 days | `segment.ms` |
/// | [`max_batch_bytes`](Self::max_batch_bytes) | 8 MiB | `max.message.bytes` |
/// | [`compression`](Self::compression) | none | `compression.type` |
/// | [`timestamp_type`](Self::timestamp_type) | create time | `message.timestamp.type` |
/// | [`timestamp_before_max`](Self::timestamp_before_max) | any | `message.timestamp.before.max.ms` |
/// | [`timestamp_after_max`](Self::timestamp_after_max) | any | `message.timestamp.after.max.ms` |
/// | [`index_interval_bytes`](Self::index_interval_bytes) | 4096 | `index.interval.bytes` |
/// | [`unclean_leader_election`](Self::unclean_leader_election) | off | `unclean.leader.election.enable` |
///
/// # Examples
/// ```
/// use oncelog::{Flush, Retention, TopicConfig};
/// let config = TopicConfig::new().partitions(6).flush(Flush::Os).retention(Retention::bytes(1 << 30));
/// # let _ = config;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct TopicConfig {
    pub(crate) partitions: u32,
    pub(crate) replication_factor: u16,
    pub(crate) min_insync_replicas: u16,
    pub(crate) flush: Flush,
    pub(crate) retention: Retention,
    pub(crate) segment_bytes: u64,
    pub(crate) segment_age: Duration,
    pub(crate) max_batch_bytes: u32,
    pub(crate) compression: Compression,
    pub(crate) timestamp_type: TimestampType,
    pub(crate) timestamp_before_max: Option<Duration>,
    pub(crate) timestamp_after_max: Option<Duration>,
    pub(crate) index_interval_bytes: u32,
    pub(crate) unclean_leader_election: bool,
}

impl Default for TopicConfig {
    fn default() -> Self {
        Self {
            partitions: 1,
            replication_factor: 1,
            min_insync_replicas: 1,
            flush: Flush::OnAck,
            retention: Retention::forever(),
            segment_bytes: 256 << 20,
            segment_age: Duration::from_secs(7 * 86_400),
            max_batch_bytes: 8 << 20,
            compression: Compression::None,
            timestamp_type: TimestampType::CreateTime,
            timestamp_before_max: None,
            timestamp_after_max: None,
            index_interval_bytes: 4096,
            unclean_leader_election: false,
        }
    }
}

impl TopicConfig {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many partitions, 1 to a million. They take room once something is appended to them.
    pub fn partitions(mut self, count: u32) -> Self {
        self.partitions = count;
        self
    }

    /// On how many disks each partition is kept.
    pub fn replication_factor(mut self, replicas: u16) -> Self {
        self.replication_factor = replicas;
        self
    }

    /// How many replicas must be in sync for [`Acks::All`](crate::Acks::All).
    pub fn min_insync_replicas(mut self, replicas: u16) -> Self {
        self.min_insync_replicas = replicas;
        self
    }

    /// When appended bytes are forced to stable storage.
    pub fn flush(mut self, flush: Flush) -> Self {
        self.flush = flush;
        self
    }

    /// What is kept.
    pub fn retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    /// How large a segment gets, 4 KiB to just below 2 GiB. A larger batch gets one of its own.
    pub fn segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = bytes;
        self
    }

    /// After what time a new segment is begun, by the machine's clock.
    pub fn segment_age(mut self, age: Duration) -> Self {
        self.segment_age = age;
        self
    }

    /// How large a batch may be, encoded: 1 KiB to 1 GiB.
    pub fn max_batch_bytes(mut self, bytes: u32) -> Self {
        self.max_batch_bytes = bytes;
        self
    }

    /// How batches are packed.
    pub fn compression(mut self, codec: Compression) -> Self {
        self.compression = codec;
        self
    }

    /// Who stamps the records.
    pub fn timestamp_type(mut self, stamped_by: TimestampType) -> Self {
        self.timestamp_type = stamped_by;
        self
    }

    /// How far before the append a record's own timestamp may lie (LOG-13).
    pub fn timestamp_before_max(mut self, span: Duration) -> Self {
        self.timestamp_before_max = Some(span);
        self
    }

    /// How far after the append a record's own timestamp may lie (LOG-13).
    pub fn timestamp_after_max(mut self, span: Duration) -> Self {
        self.timestamp_after_max = Some(span);
        self
    }

    /// Bytes of batches to an entry of the sparse index, 64 to 1 MiB.
    pub fn index_interval_bytes(mut self, bytes: u32) -> Self {
        self.index_interval_bytes = bytes;
        self
    }

    /// Whether a replica that lacks acknowledged records may lead when no other is left.
    pub fn unclean_leader_election(mut self, allowed: bool) -> Self {
        self.unclean_leader_election = allowed;
        self
    }

    /// The earliest timestamp that a record may bear at `now`.
    #[inline]
    pub(crate) fn timestamp_min(&self, now: Timestamp) -> Timestamp {
        self.timestamp_before_max.map_or(Timestamp::MIN, |span| {
            Timestamp(now.0.saturating_sub(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
        })
    }

    /// The latest timestamp that a record may bear at `now`.
    #[inline]
    pub(crate) fn timestamp_max(&self, now: Timestamp) -> Timestamp {
        self.timestamp_after_max.map_or(Timestamp::MAX, |span| now.plus(span))
    }

    /// Checks everything against its limits and each other (RELIABILITY A2).
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for the first that does not fit.
    pub(crate) fn validate(&self, disks: usize) -> Result<(), Error> {
        let replicas = usize::from(self.replication_factor);
        let check = |fits: bool, key: &str, value: &dyn ToString, reason: &str| {
            let refuse = || invalid(key, value.to_string(), reason);
            if fits { Ok(()) } else { Err(refuse()) }
        };
        check(
            (1..=PARTITIONS_MAX).contains(&self.partitions),
            "num.partitions",
            &self.partitions,
            "from 1 to 1000000",
        )?;
        check(
            (1..=disks).contains(&replicas),
            "default.replication.factor",
            &self.replication_factor,
            &format!("from 1 to the number of disks, {disks}"),
        )?;
        check(
            (1..=self.replication_factor).contains(&self.min_insync_replicas),
            "min.insync.replicas",
            &self.min_insync_replicas,
            "from 1 to the replication factor",
        )?;
        check(
            SEGMENT_BYTES.contains(&self.segment_bytes),
            "segment.bytes",
            &self.segment_bytes,
            "from 4096 to 2147479552",
        )?;
        let age = self.segment_age.as_millis();
        check(age >= 1, "segment.ms", &age, "at least 1")?;
        check(
            BATCH_BYTES.contains(&self.max_batch_bytes),
            "max.message.bytes",
            &self.max_batch_bytes,
            "from 1024 to 1073741824",
        )?;
        check(
            INDEX_INTERVAL.contains(&self.index_interval_bytes),
            "index.interval.bytes",
            &self.index_interval_bytes,
            "from 64 to 1048576",
        )?;
        if let Flush::Interval(interval) = self.flush {
            let millis = interval.as_millis();
            check(millis >= 1, "flush.ms", &millis, "at least 1")?;
        }
        check(
            compiled_in(self.compression),
            "compression.type",
            &format!("{:?}", self.compression),
            "its feature of the crate is not enabled",
        )
    }

    /// Appends the settings: pairs of a field's number (u16) and its value (u64), little-endian.
    pub(crate) fn encode(&self, target: &mut Vec<u8>) {
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let mut put = |field: u16, value: u64| {
            target.extend_from_slice(&field.to_le_bytes());
            target.extend_from_slice(&value.to_le_bytes());
        };
        put(1, self.partitions.into());
        put(2, self.replication_factor.into());
        put(3, self.min_insync_replicas.into());
        match self.flush {
            Flush::OnAck => put(4, 0),
            Flush::Os => put(4, 1),
            Flush::Interval(interval) => put(5, u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX)),
        }
        self.retention.bytes.into_iter().for_each(|bytes| put(6, bytes));
        self.retention.age.into_iter().for_each(|age| put(7, millis(age)));
        put(8, self.segment_bytes);
        put(9, millis(self.segment_age));
        put(10, self.max_batch_bytes.into());
        put(11, codec_number(self.compression));
        put(12, u64::from(self.timestamp_type == TimestampType::AppendTime));
        self.timestamp_before_max.into_iter().for_each(|span| put(13, millis(span)));
        self.timestamp_after_max.into_iter().for_each(|span| put(14, millis(span)));
        put(15, self.index_interval_bytes.into());
        put(16, self.unclean_leader_election.into());
    }

    /// Reads what [`TopicConfig::encode`] wrote.
    ///
    /// # Errors
    /// [`DecodeError::Field`] for a field that is not known or does not fit: a newer version wrote it.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let bad = || DecodeError::Field("topic settings");
        let u32_of = |value: u64| u32::try_from(value).map_err(|_| bad());
        let u16_of = |value: u64| u16::try_from(value).map_err(|_| bad());
        let mut config = Self::default();
        let mut pairs = bytes.chunks_exact(10);
        for pair in &mut pairs {
            let (field, value) = pair.split_first_chunk().expect("ten bytes");
            let value = u64::from_le_bytes(value.try_into().expect("eight of them"));
            match u16::from_le_bytes(*field) {
                1 => config.partitions = u32_of(value)?,
                2 => config.replication_factor = u16_of(value)?,
                3 => config.min_insync_replicas = u16_of(value)?,
                4 if value == 0 => config.flush = Flush::OnAck,
                4 if value == 1 => config.flush = Flush::Os,
                5 => config.flush = Flush::Interval(Duration::from_nanos(value)),
                6 => config.retention.bytes = Some(value),
                7 => config.retention.age = Some(Duration::from_millis(value)),
                8 => config.segment_bytes = value,
                9 => config.segment_age = Duration::from_millis(value),
                10 => config.max_batch_bytes = u32_of(value)?,
                11 => config.compression = codec_of(value).ok_or_else(bad)?,
                12 if value == 0 => config.timestamp_type = TimestampType::CreateTime,
                12 if value == 1 => config.timestamp_type = TimestampType::AppendTime,
                13 => config.timestamp_before_max = Some(Duration::from_millis(value)),
                14 => config.timestamp_after_max = Some(Duration::from_millis(value)),
                15 => config.index_interval_bytes = u32_of(value)?,
                16 => config.unclean_leader_election = value != 0,
                _ => return Err(bad()),
            }
        }
        if pairs.remainder().is_empty() { Ok(config) } else { Err(bad()) }
    }
}

/// Changes to a topic's settings: what is not set stays.
///
/// # Examples
/// ```
/// use oncelog::{Retention, TopicUpdate};
/// let update = TopicUpdate::new().retention(Retention::bytes(1 << 20));
/// # let _ = update;
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct TopicUpdate {
    flush: Option<Flush>,
    retention: Option<Retention>,
    segment_bytes: Option<u64>,
    segment_age: Option<Duration>,
    max_batch_bytes: Option<u32>,
    min_insync_replicas: Option<u16>,
    compression: Option<Compression>,
    timestamp_type: Option<TimestampType>,
    unclean_leader_election: Option<bool>,
}

impl TopicUpdate {
    /// No changes.
    pub fn new() -> Self {
        Self::default()
    }

    /// See [`TopicConfig::flush`].
    pub fn flush(mut self, flush: Flush) -> Self {
        self.flush = Some(flush);
        self
    }

    /// See [`TopicConfig::retention`].
    pub fn retention(mut self, retention: Retention) -> Self {
        self.retention = Some(retention);
        self
    }

    /// See [`TopicConfig::segment_bytes`].
    pub fn segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = Some(bytes);
        self
    }

    /// See [`TopicConfig::segment_age`].
    pub fn segment_age(mut self, age: Duration) -> Self {
        self.segment_age = Some(age);
        self
    }

    /// See [`TopicConfig::max_batch_bytes`].
    pub fn max_batch_bytes(mut self, bytes: u32) -> Self {
        self.max_batch_bytes = Some(bytes);
        self
    }

    /// See [`TopicConfig::min_insync_replicas`].
    pub fn min_insync_replicas(mut self, replicas: u16) -> Self {
        self.min_insync_replicas = Some(replicas);
        self
    }

    /// See [`TopicConfig::compression`].
    pub fn compression(mut self, codec: Compression) -> Self {
        self.compression = Some(codec);
        self
    }

    /// See [`TopicConfig::timestamp_type`].
    pub fn timestamp_type(mut self, stamped_by: TimestampType) -> Self {
        self.timestamp_type = Some(stamped_by);
        self
    }

    /// See [`TopicConfig::unclean_leader_election`].
    pub fn unclean_leader_election(mut self, allowed: bool) -> Self {
        self.unclean_leader_election = Some(allowed);
        self
    }

    /// The settings with the changes made.
    pub(crate) fn apply(&self, config: &TopicConfig) -> TopicConfig {
        TopicConfig {
            flush: self.flush.unwrap_or(config.flush),
            retention: self.retention.unwrap_or(config.retention),
            segment_bytes: self.segment_bytes.unwrap_or(config.segment_bytes),
            segment_age: self.segment_age.unwrap_or(config.segment_age),
            max_batch_bytes: self.max_batch_bytes.unwrap_or(config.max_batch_bytes),
            min_insync_replicas: self.min_insync_replicas.unwrap_or(config.min_insync_replicas),
            compression: self.compression.unwrap_or(config.compression),
            timestamp_type: self.timestamp_type.unwrap_or(config.timestamp_type),
            unclean_leader_election: self
                .unclean_leader_election
                .unwrap_or(config.unclean_leader_election),
            ..config.clone()
        }
    }
}

pub(super) fn invalid(key: &str, value: impl Into<String>, reason: &str) -> Error {
    Error::InvalidConfig { key: key.to_owned(), value: value.into(), reason: reason.to_owned() }
}

fn compiled_in(codec: Compression) -> bool {
    match codec {
        Compression::None => true,
        Compression::Lz4 => cfg!(feature = "lz4"),
        Compression::Zstd => cfg!(feature = "zstd"),
        Compression::Snappy => cfg!(feature = "snappy"),
    }
}

fn codec_number(codec: Compression) -> u64 {
    match codec {
        Compression::None => 0,
        Compression::Snappy => 2,
        Compression::Lz4 => 3,
        Compression::Zstd => 4,
    }
}

fn codec_of(number: u64) -> Option<Compression> {
    [Compression::None, Compression::Snappy, Compression::Lz4, Compression::Zstd]
        .into_iter()
        .find(|codec| codec_number(*codec) == number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_back_from_their_bytes() {
        let all = TopicConfig::new()
            .partitions(7)
            .flush(Flush::Interval(Duration::from_micros(1500)))
            .retention(Retention::bytes(9).and_age(Duration::from_secs(3)))
            .timestamp_type(TimestampType::AppendTime)
            .timestamp_before_max(Duration::from_secs(1))
            .timestamp_after_max(Duration::from_secs(2))
            .compression(Compression::Zstd)
            .unclean_leader_election(true);
        for config in [TopicConfig::new(), TopicConfig::new().flush(Flush::Os), all] {
            let mut bytes = Vec::new();
            config.encode(&mut bytes);
            assert_eq!(TopicConfig::decode(&bytes), Ok(config));
            assert!(TopicConfig::decode(&bytes[1..]).is_err());
        }
        assert!(TopicConfig::decode(&[99, 0, 0, 0, 0, 0, 0, 0, 0, 0]).is_err());
    }

    #[test]
    fn settings_out_of_their_range_are_refused_by_kafkas_name() {
        let new = TopicConfig::new;
        for (config, named) in [
            (new().partitions(0), "num.partitions"),
            (new().partitions(1_000_000_000), "num.partitions"),
            (new().replication_factor(0), "default.replication.factor"),
            (new().replication_factor(2), "default.replication.factor"),
            (new().min_insync_replicas(0), "min.insync.replicas"),
            (new().min_insync_replicas(2), "min.insync.replicas"),
            (new().segment_bytes(0), "segment.bytes"),
            (new().segment_bytes(1), "segment.bytes"),
            (new().segment_bytes(5 << 30), "segment.bytes"),
            (new().segment_age(Duration::ZERO), "segment.ms"),
            (new().max_batch_bytes(0), "max.message.bytes"),
            (new().index_interval_bytes(0), "index.interval.bytes"),
            (new().flush(Flush::Interval(Duration::ZERO)), "flush.ms"),
        ] {
            let refused = config.validate(1);
            assert!(
                matches!(&refused, Err(Error::InvalidConfig { key, .. }) if key == named),
                "A2: {named}: {refused:?}"
            );
        }
        assert!(new().validate(1).is_ok());
    }
}
