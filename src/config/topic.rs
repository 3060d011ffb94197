//! The settings of a topic.

use std::time::Duration;

use crate::error::{DecodeError, Error};
use crate::record::{codec_code, codec_is_available, codec_of};
use crate::types::{Compression, Flush, Timestamp, TimestampType};

use super::Retention;

const PARTITIONS_MAX: u32 = 1_000_000;
const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = 4096..=(1 << 31) - 4096;
const BATCH_BYTES: std::ops::RangeInclusive<u32> = 1024..=(1 << 30);
const INDEX_INTERVAL: std::ops::RangeInclusive<u32> = 64..=(1 << 20);

// The fields' numbers in [`TopicConfig::encode`]. A number is never used for anything else.
const PARTITIONS: u16 = 1;
const REPLICATION_FACTOR: u16 = 2;
const MIN_INSYNC_REPLICAS: u16 = 3;
const FLUSH_OS: u16 = 4;
const FLUSH_INTERVAL: u16 = 5;
const RETENTION_BYTES: u16 = 6;
const RETENTION_AGE: u16 = 7;
const SEGMENT_SIZE: u16 = 8;
const SEGMENT_AGE: u16 = 9;
const MAX_BATCH_BYTES: u16 = 10;
const COMPRESSION: u16 = 11;
const APPEND_TIME: u16 = 12;
const TIMESTAMP_BEFORE_MAX: u16 = 13;
const TIMESTAMP_AFTER_MAX: u16 = 14;
const INDEX_INTERVAL_BYTES: u16 = 15;
const UNCLEAN_ELECTION: u16 = 16;
/// Added to the number of a span of time: the nanoseconds beyond its whole seconds.
const BEYOND_SECONDS: u16 = 256;

const UNKNOWN: DecodeError = DecodeError::Field("topic settings");

/// A setting that is outside its range, whatever the others are.
pub(super) struct OutOfRange {
    /// Kafka's name of it.
    pub(super) key: &'static str,
    value: String,
    pub(super) range: &'static str,
}

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
    flush_chosen: Chosen,
    pub(crate) retention: Retention,
    retention_chosen: Chosen,
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

/// Whether a setting was chosen for the topic, or is the store's default to fill in. No part of what a
/// topic is: two topics that are set alike are alike.
#[derive(Clone, Copy, Debug)]
struct Chosen(bool);

impl PartialEq for Chosen {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Chosen {}

impl Default for TopicConfig {
    fn default() -> Self {
        Self {
            partitions: 1,
            replication_factor: 1,
            min_insync_replicas: 1,
            flush: Flush::OnAck,
            flush_chosen: Chosen(false),
            retention: Retention::forever(),
            retention_chosen: Chosen(false),
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
        self.flush_chosen = Chosen(true);
        self
    }

    /// What is kept.
    pub fn retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self.retention_chosen = Chosen(true);
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

    /// The settings with the store's defaults where this topic did not choose. Flush and retention decide
    /// what is lost, so choosing them counts even where the choice is the built-in default; any other
    /// setting is taken as chosen if it differs from that.
    pub(crate) fn or_defaults(self, defaults: &Self) -> Self {
        fn pick<T: PartialEq>(own: T, built_in: &T, default: T) -> T {
            if own == *built_in { default } else { own }
        }
        let built_in = Self::default();
        let store = defaults.clone();
        Self {
            flush: if self.flush_chosen.0 { self.flush } else { store.flush },
            retention: if self.retention_chosen.0 { self.retention } else { store.retention },
            partitions: pick(self.partitions, &built_in.partitions, store.partitions),
            replication_factor: pick(
                self.replication_factor,
                &built_in.replication_factor,
                store.replication_factor,
            ),
            min_insync_replicas: pick(
                self.min_insync_replicas,
                &built_in.min_insync_replicas,
                store.min_insync_replicas,
            ),
            segment_bytes: pick(self.segment_bytes, &built_in.segment_bytes, store.segment_bytes),
            segment_age: pick(self.segment_age, &built_in.segment_age, store.segment_age),
            max_batch_bytes: pick(
                self.max_batch_bytes,
                &built_in.max_batch_bytes,
                store.max_batch_bytes,
            ),
            compression: pick(self.compression, &built_in.compression, store.compression),
            timestamp_type: pick(
                self.timestamp_type,
                &built_in.timestamp_type,
                store.timestamp_type,
            ),
            timestamp_before_max: self.timestamp_before_max.or(store.timestamp_before_max),
            timestamp_after_max: self.timestamp_after_max.or(store.timestamp_after_max),
            index_interval_bytes: pick(
                self.index_interval_bytes,
                &built_in.index_interval_bytes,
                store.index_interval_bytes,
            ),
            unclean_leader_election: self.unclean_leader_election || store.unclean_leader_election,
            flush_chosen: Chosen(true),
            retention_chosen: Chosen(true),
        }
    }

    /// The earliest timestamp that a record may bear at `now`.
    #[inline]
    pub(crate) fn timestamp_min(&self, now: Timestamp) -> Timestamp {
        // A span that no timestamp can hold reaches back to the first of them.
        self.timestamp_before_max
            .and_then(|span| i64::try_from(span.as_millis()).ok())
            .map_or(Timestamp::MIN, |span| Timestamp(now.0.saturating_sub(span)))
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
        let refuse = |key: &str, value: String, reason: &str| Err(invalid(key, value, reason));
        if let Err(outside) = self.check_ranges() {
            return refuse(outside.key, outside.value, outside.range);
        }
        if usize::from(self.replication_factor) > disks {
            let reason = format!("from 1 to the number of disks, {disks}");
            return refuse(
                "default.replication.factor",
                self.replication_factor.to_string(),
                &reason,
            );
        }
        if self.min_insync_replicas > self.replication_factor {
            let reason = format!("from 1 to the replication factor, {}", self.replication_factor);
            return refuse("min.insync.replicas", self.min_insync_replicas.to_string(), &reason);
        }
        if !codec_is_available(self.compression) {
            let reason = "its feature of the crate is not enabled";
            return refuse("compression.type", format!("{:?}", self.compression), reason);
        }
        Ok(())
    }

    /// Checks each setting by itself: what holds on any store and in any build.
    pub(super) fn check_ranges(&self) -> Result<(), OutOfRange> {
        let age_ms = self.segment_age.as_millis();
        let interval_ms = match self.flush {
            Flush::Interval(interval) => interval.as_millis(),
            Flush::OnAck | Flush::Os => 1,
        };
        let settings: [(bool, &'static str, &dyn ToString, &'static str); 8] = [
            (
                (1..=PARTITIONS_MAX).contains(&self.partitions),
                "num.partitions",
                &self.partitions,
                "from 1 to 1000000",
            ),
            (
                self.replication_factor >= 1,
                "default.replication.factor",
                &self.replication_factor,
                "from 1 to the number of disks",
            ),
            (
                self.min_insync_replicas >= 1,
                "min.insync.replicas",
                &self.min_insync_replicas,
                "from 1 to the replication factor",
            ),
            (
                SEGMENT_BYTES.contains(&self.segment_bytes),
                "segment.bytes",
                &self.segment_bytes,
                "from 4096 to 2147479552",
            ),
            (age_ms >= 1, "segment.ms", &age_ms, "at least 1"),
            (
                BATCH_BYTES.contains(&self.max_batch_bytes),
                "max.message.bytes",
                &self.max_batch_bytes,
                "from 1024 to 1073741824",
            ),
            (
                INDEX_INTERVAL.contains(&self.index_interval_bytes),
                "index.interval.bytes",
                &self.index_interval_bytes,
                "from 64 to 1048576",
            ),
            (interval_ms >= 1, "flush.ms", &interval_ms, "at least 1"),
        ];
        match settings.into_iter().find(|(fits, ..)| !fits) {
            Some((_, key, value, range)) => {
                Err(OutOfRange { key, value: value.to_string(), range })
            }
            None => Ok(()),
        }
    }

    /// Appends the settings: pairs of a field's number (u16) and its value (u64), little-endian. A span
    /// of time is its whole seconds, and under the number plus 256 the nanoseconds beyond, if there are
    /// any. A setting that is absent is left out.
    pub(crate) fn encode(&self, target: &mut Vec<u8>) {
        let mut put = |field: u16, value: u64| {
            target.extend_from_slice(&field.to_le_bytes());
            target.extend_from_slice(&value.to_le_bytes());
        };
        put(PARTITIONS, self.partitions.into());
        put(REPLICATION_FACTOR, self.replication_factor.into());
        put(MIN_INSYNC_REPLICAS, self.min_insync_replicas.into());
        let interval = match self.flush {
            Flush::OnAck => None,
            Flush::Os => {
                put(FLUSH_OS, 1);
                None
            }
            Flush::Interval(interval) => Some(interval),
        };
        self.retention.bytes.into_iter().for_each(|bytes| put(RETENTION_BYTES, bytes));
        put(SEGMENT_SIZE, self.segment_bytes);
        put(MAX_BATCH_BYTES, self.max_batch_bytes.into());
        put(COMPRESSION, codec_code(self.compression).into());
        put(APPEND_TIME, u64::from(self.timestamp_type == TimestampType::AppendTime));
        put(INDEX_INTERVAL_BYTES, self.index_interval_bytes.into());
        put(UNCLEAN_ELECTION, self.unclean_leader_election.into());
        for (field, span) in [
            (FLUSH_INTERVAL, interval),
            (RETENTION_AGE, self.retention.age),
            (SEGMENT_AGE, Some(self.segment_age)),
            (TIMESTAMP_BEFORE_MAX, self.timestamp_before_max),
            (TIMESTAMP_AFTER_MAX, self.timestamp_after_max),
        ] {
            let Some(span) = span else { continue };
            put(field, span.as_secs());
            if span.subsec_nanos() > 0 {
                put(field + BEYOND_SECONDS, span.subsec_nanos().into());
            }
        }
    }

    /// Reads what [`TopicConfig::encode`] wrote.
    ///
    /// # Errors
    /// [`DecodeError::Field`] for a field that is not known or does not fit: a newer version wrote it.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut config = Self::default();
        let mut interval = None;
        let mut pairs = bytes.chunks_exact(10);
        for pair in &mut pairs {
            let (field, value) = pair.split_first_chunk().expect("ten bytes");
            let (field, value) = (
                u16::from_le_bytes(*field),
                u64::from_le_bytes(value.try_into().expect("eight bytes")),
            );
            config.decode_field(field, value, &mut interval).ok_or(UNKNOWN)?;
        }
        config.flush = match (config.flush, interval) {
            (Flush::OnAck, Some(interval)) => Flush::Interval(interval),
            (_, Some(_)) => return Err(UNKNOWN),
            (flush, None) => flush,
        };
        if !pairs.remainder().is_empty() {
            return Err(UNKNOWN);
        }
        config.check_ranges().map_err(|outside| DecodeError::Field(outside.key))?;
        Ok(config)
    }

    fn decode_field(
        &mut self,
        field: u16,
        value: u64,
        interval: &mut Option<Duration>,
    ) -> Option<()> {
        let flag = || (value <= 1).then_some(value == 1);
        match field {
            PARTITIONS => self.partitions = value.try_into().ok()?,
            REPLICATION_FACTOR => self.replication_factor = value.try_into().ok()?,
            MIN_INSYNC_REPLICAS => self.min_insync_replicas = value.try_into().ok()?,
            FLUSH_OS if value == 1 => self.flush = Flush::Os,
            RETENTION_BYTES => self.retention.bytes = Some(value),
            SEGMENT_SIZE => self.segment_bytes = value,
            MAX_BATCH_BYTES => self.max_batch_bytes = value.try_into().ok()?,
            COMPRESSION => self.compression = codec_of(value.try_into().ok()?)?,
            APPEND_TIME => {
                self.timestamp_type =
                    if flag()? { TimestampType::AppendTime } else { TimestampType::CreateTime };
            }
            INDEX_INTERVAL_BYTES => self.index_interval_bytes = value.try_into().ok()?,
            UNCLEAN_ELECTION => self.unclean_leader_election = flag()?,
            SEGMENT_AGE => self.segment_age = Duration::from_secs(value),
            FLUSH_INTERVAL => *interval = Some(Duration::from_secs(value)),
            RETENTION_AGE => self.retention.age = Some(Duration::from_secs(value)),
            TIMESTAMP_BEFORE_MAX => self.timestamp_before_max = Some(Duration::from_secs(value)),
            TIMESTAMP_AFTER_MAX => self.timestamp_after_max = Some(Duration::from_secs(value)),
            _ => {
                let nanos = u32::try_from(value).ok().filter(|nanos| *nanos < 1_000_000_000)?;
                let span = match field.checked_sub(BEYOND_SECONDS)? {
                    SEGMENT_AGE => &mut self.segment_age,
                    FLUSH_INTERVAL => interval.as_mut()?,
                    RETENTION_AGE => self.retention.age.as_mut()?,
                    TIMESTAMP_BEFORE_MAX => self.timestamp_before_max.as_mut()?,
                    TIMESTAMP_AFTER_MAX => self.timestamp_after_max.as_mut()?,
                    _ => return None,
                };
                *span = Duration::new(span.as_secs(), nanos);
            }
        }
        Some(())
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
    timestamp_before_max: Option<Duration>,
    timestamp_after_max: Option<Duration>,
    index_interval_bytes: Option<u32>,
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

    /// See [`TopicConfig::timestamp_before_max`]; [`Duration::MAX`] allows any.
    pub fn timestamp_before_max(mut self, span: Duration) -> Self {
        self.timestamp_before_max = Some(span);
        self
    }

    /// See [`TopicConfig::timestamp_after_max`]; [`Duration::MAX`] allows any.
    pub fn timestamp_after_max(mut self, span: Duration) -> Self {
        self.timestamp_after_max = Some(span);
        self
    }

    /// See [`TopicConfig::index_interval_bytes`].
    pub fn index_interval_bytes(mut self, bytes: u32) -> Self {
        self.index_interval_bytes = Some(bytes);
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
            flush_chosen: Chosen(true),
            retention_chosen: Chosen(true),
            flush: self.flush.unwrap_or(config.flush),
            retention: self.retention.unwrap_or(config.retention),
            segment_bytes: self.segment_bytes.unwrap_or(config.segment_bytes),
            segment_age: self.segment_age.unwrap_or(config.segment_age),
            max_batch_bytes: self.max_batch_bytes.unwrap_or(config.max_batch_bytes),
            min_insync_replicas: self.min_insync_replicas.unwrap_or(config.min_insync_replicas),
            compression: self.compression.unwrap_or(config.compression),
            timestamp_type: self.timestamp_type.unwrap_or(config.timestamp_type),
            timestamp_before_max: self.timestamp_before_max.or(config.timestamp_before_max),
            timestamp_after_max: self.timestamp_after_max.or(config.timestamp_after_max),
            index_interval_bytes: self.index_interval_bytes.unwrap_or(config.index_interval_bytes),
            unclean_leader_election: self
                .unclean_leader_election
                .unwrap_or(config.unclean_leader_election),
            partitions: config.partitions,
            replication_factor: config.replication_factor,
        }
    }
}

pub(super) fn invalid(key: &str, value: impl Into<String>, reason: &str) -> Error {
    Error::InvalidConfig { key: key.to_owned(), value: value.into(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_span() -> impl Strategy<Value = Duration> {
        let shortest = Duration::from_millis(1);
        prop_oneof![
            (any::<u64>(), 0u32..1_000_000_000)
                .prop_map(|(secs, nanos)| Duration::new(secs, nanos)),
            (0u64..100, 0u32..1_000_000_000).prop_map(|(secs, nanos)| Duration::new(secs, nanos)),
            Just(Duration::MAX),
        ]
        .prop_map(move |span| span.max(shortest))
    }

    fn any_config() -> impl Strategy<Value = TopicConfig> {
        let codecs = [Compression::None, Compression::Lz4, Compression::Zstd, Compression::Snappy];
        let flush =
            prop_oneof![Just(Flush::OnAck), Just(Flush::Os), any_span().prop_map(Flush::Interval),];
        let counts = (1..=PARTITIONS_MAX, 1u16.., 1u16..);
        let limits = (SEGMENT_BYTES, any_span(), BATCH_BYTES, INDEX_INTERVAL);
        let retention = (any::<Option<u64>>(), proptest::option::of(any_span()));
        let stamps =
            (any::<bool>(), proptest::option::of(any_span()), proptest::option::of(any_span()));
        let rest = (proptest::sample::select(codecs.to_vec()), any::<bool>());
        (counts, flush, limits, retention, stamps, rest).prop_map(
            |(counts, flush, limits, (bytes, age), stamps, rest)| TopicConfig {
                flush_chosen: Chosen(true),
                retention_chosen: Chosen(true),
                partitions: counts.0,
                replication_factor: counts.1,
                min_insync_replicas: counts.2,
                flush,
                retention: Retention { bytes, age },
                segment_bytes: limits.0,
                segment_age: limits.1,
                max_batch_bytes: limits.2,
                compression: rest.0,
                timestamp_type: [TimestampType::CreateTime, TimestampType::AppendTime]
                    [usize::from(stamps.0)],
                timestamp_before_max: stamps.1,
                timestamp_after_max: stamps.2,
                index_interval_bytes: limits.3,
                unclean_leader_election: rest.1,
            },
        )
    }

    proptest! {
        #[test]
        fn settings_come_back_from_their_bytes_to_the_nanosecond(config in any_config()) {
            let mut bytes = Vec::new();
            config.encode(&mut bytes);
            prop_assert_eq!(TopicConfig::decode(&bytes), Ok(config));
            prop_assert!(TopicConfig::decode(&bytes[1..]).is_err());
        }

        #[test]
        fn any_bytes_are_settings_within_their_ranges_or_refused(
            pairs in proptest::collection::vec((0u16..280, prop_oneof![0u64..9, any::<u64>()]), 0..6)
        ) {
            let mut bytes = Vec::new();
            for (field, value) in pairs {
                bytes.extend_from_slice(&field.to_le_bytes());
                bytes.extend_from_slice(&value.to_le_bytes());
            }
            if let Ok(config) = TopicConfig::decode(&bytes) {
                prop_assert!(config.check_ranges().is_ok());
            }
        }
    }

    #[test]
    fn a_field_of_a_later_version_is_refused() {
        for field in [0u16, 17, 257, 999] {
            let mut bytes = field.to_le_bytes().to_vec();
            bytes.extend_from_slice(&1u64.to_le_bytes());
            assert_eq!(TopicConfig::decode(&bytes), Err(UNKNOWN), "field {field}");
        }
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
            (new().max_batch_bytes(u32::MAX), "max.message.bytes"),
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
        assert!(new().replication_factor(3).min_insync_replicas(2).validate(3).is_ok());
        assert!(new().validate(0).is_err(), "A2: no disks");
    }

    #[test]
    fn a_codec_that_is_not_compiled_in_is_refused_at_creation_but_can_be_read_of() {
        for codec in [Compression::Lz4, Compression::Zstd, Compression::Snappy] {
            let config = TopicConfig::new().compression(codec);
            assert_eq!(config.validate(1).is_ok(), codec_is_available(codec), "A2: {codec:?}");
            let mut bytes = Vec::new();
            config.encode(&mut bytes);
            assert_eq!(TopicConfig::decode(&bytes), Ok(config));
        }
    }

    #[test]
    fn an_update_changes_what_it_names_and_nothing_else() {
        let before = TopicConfig::new().partitions(4).timestamp_after_max(Duration::from_secs(9));
        assert_eq!(TopicUpdate::new().apply(&before), before);
        let update = TopicUpdate::new()
            .retention(Retention::bytes(7))
            .index_interval_bytes(512)
            .timestamp_before_max(Duration::from_secs(1));
        let expected = before
            .clone()
            .retention(Retention::bytes(7))
            .index_interval_bytes(512)
            .timestamp_before_max(Duration::from_secs(1));
        assert_eq!(update.apply(&before), expected);
    }
}
