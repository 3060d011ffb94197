//! Kafka's configuration keys, and what they mean here.
//!
//! One table: a key either sets something of the topics' defaults, or it only means something on a
//! network (or to a cluster) and is accepted and listed, so that one configuration serves both. Any
//! other key is an error that names the nearest one there is.
//!
//! Several keys may speak of one setting. As in Kafka, the finer unit then wins over the coarser, and
//! the topic's key over the broker's, in whatever order they are given.

use std::time::Duration;

use crate::error::Error;
use crate::record::codec_is_available;
use crate::types::{Compression, Flush, TimestampType};

use super::TopicConfig;
use super::topic::invalid;

type Set = fn(&mut Draft, &str) -> Result<(), String>;

/// Kafka's largest number, its way of writing "no limit" where -1 is not taken.
const KAFKA_MAX: u64 = i64::MAX as u64;

/// A key, the setting that it speaks of, and what it does. Of the keys of one setting, an earlier row
/// wins over a later one.
const KEYS: &[(&str, Setting, Set)] = &[
    ("num.partitions", Setting::Partitions, |draft, value| {
        number(value).map(|count| draft.topic.partitions = count)
    }),
    ("default.replication.factor", Setting::ReplicationFactor, |draft, value| {
        number(value).map(|count| draft.topic.replication_factor = count)
    }),
    ("min.insync.replicas", Setting::MinInsyncReplicas, |draft, value| {
        number(value).map(|count| draft.topic.min_insync_replicas = count)
    }),
    ("retention.bytes", Setting::RetentionBytes, set_retention_bytes),
    ("log.retention.bytes", Setting::RetentionBytes, set_retention_bytes),
    ("retention.ms", Setting::RetentionAge, |draft, value| set_retention(draft, value, 1)),
    ("log.retention.ms", Setting::RetentionAge, |draft, value| set_retention(draft, value, 1)),
    ("log.retention.minutes", Setting::RetentionAge, |draft, value| {
        set_retention(draft, value, 60_000)
    }),
    ("log.retention.hours", Setting::RetentionAge, |draft, value| {
        set_retention(draft, value, 3_600_000)
    }),
    ("cleanup.policy", Setting::CleanupPolicy, check_cleanup_policy),
    ("log.cleanup.policy", Setting::CleanupPolicy, check_cleanup_policy),
    ("segment.bytes", Setting::SegmentBytes, set_segment_bytes),
    ("log.segment.bytes", Setting::SegmentBytes, set_segment_bytes),
    ("segment.ms", Setting::SegmentAge, |draft, value| set_segment_age(draft, value, 1)),
    ("log.roll.ms", Setting::SegmentAge, |draft, value| set_segment_age(draft, value, 1)),
    ("log.roll.hours", Setting::SegmentAge, |draft, value| {
        set_segment_age(draft, value, 3_600_000)
    }),
    ("max.message.bytes", Setting::MaxBatchBytes, set_max_batch_bytes),
    ("message.max.bytes", Setting::MaxBatchBytes, set_max_batch_bytes),
    ("message.timestamp.type", Setting::TimestampType, set_timestamp_type),
    ("log.message.timestamp.type", Setting::TimestampType, set_timestamp_type),
    ("message.timestamp.before.max.ms", Setting::TimestampBeforeMax, set_before_max),
    ("log.message.timestamp.before.max.ms", Setting::TimestampBeforeMax, set_before_max),
    ("message.timestamp.after.max.ms", Setting::TimestampAfterMax, set_after_max),
    ("log.message.timestamp.after.max.ms", Setting::TimestampAfterMax, set_after_max),
    ("compression.type", Setting::Compression, set_compression),
    ("index.interval.bytes", Setting::IndexIntervalBytes, set_index_interval_bytes),
    ("log.index.interval.bytes", Setting::IndexIntervalBytes, set_index_interval_bytes),
    ("unclean.leader.election.enable", Setting::UncleanLeaderElection, |draft, value| {
        boolean(value).map(|on| draft.topic.unclean_leader_election = on)
    }),
    ("flush.messages", Setting::FlushMessages, set_flush_messages),
    ("log.flush.interval.messages", Setting::FlushMessages, set_flush_messages),
    ("flush.ms", Setting::FlushTime, set_flush_ms),
    ("log.flush.interval.ms", Setting::FlushTime, set_flush_ms),
    ("auto.leader.rebalance.enable", Setting::Rebalance, |draft, value| {
        boolean(value).map(|on| draft.rebalance = Some(on))
    }),
    ("log.scrub.bytes.per.second", Setting::ScrubRate, |draft, value| {
        number(value).map(|bytes| draft.scrub_rate = Some(bytes))
    }),
    ("offsets.retention.minutes", Setting::OffsetsRetention, |draft, value| {
        number(value).map(|minutes: u32| {
            draft.offsets_retention = Some(Duration::from_secs(60 * u64::from(minutes)));
        })
    }),
];

/// What several keys may speak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setting {
    Partitions,
    ReplicationFactor,
    MinInsyncReplicas,
    RetentionBytes,
    RetentionAge,
    CleanupPolicy,
    SegmentBytes,
    SegmentAge,
    MaxBatchBytes,
    TimestampType,
    TimestampBeforeMax,
    TimestampAfterMax,
    Compression,
    IndexIntervalBytes,
    UncleanLeaderElection,
    FlushMessages,
    FlushTime,
    Rebalance,
    ScrubRate,
    OffsetsRetention,
}

/// Keys, and beginnings of keys (with a dot at the end), that have no meaning in one process: the
/// network, its security, the quorum of controllers, the cluster's housekeeping.
const NETWORK: &[&str] = &[
    "advertised.listeners",
    "allow.everyone.if.no.acl.found",
    "authorizer.",
    "auto.create.topics.enable",
    "background.threads",
    "bootstrap.controllers",
    "bootstrap.servers",
    "broker.",
    "client.dns.lookup",
    "client.id",
    "client.quota.",
    "client.rack",
    "connection.failed.authentication.delay.ms",
    "connections.max.idle.ms",
    "connections.max.reauth.ms",
    "control.plane.listener.name",
    "controlled.shutdown.",
    "controller.",
    "delegation.token.",
    "early.start.listeners",
    "follower.replication.throttled.",
    "host.name",
    "initial.broker.registration.timeout.ms",
    "inter.broker.",
    "leader.imbalance.",
    "leader.replication.throttled.",
    "listener.",
    "listeners",
    "max.connection.creation.rate",
    "max.connections",
    "max.connections.per.ip",
    "max.connections.per.ip.overrides",
    "metadata.log.",
    "metadata.max.age.ms",
    "metadata.max.idle.interval.ms",
    "metadata.recovery.",
    "metric.reporters",
    "metrics.",
    "node.id",
    "num.io.threads",
    "num.network.threads",
    "num.replica.alter.log.dirs.threads",
    "num.replica.fetchers",
    "password.encoder.",
    "port",
    "principal.builder.class",
    "process.roles",
    "queued.max.request.bytes",
    "queued.max.requests",
    "quota.",
    "receive.buffer.bytes",
    "reconnect.backoff.max.ms",
    "reconnect.backoff.ms",
    "replica.fetch.",
    "replica.socket.",
    "replication.quota.",
    "sasl.",
    "security.",
    "send.buffer.bytes",
    "server.max.startup.time.ms",
    "socket.",
    "ssl.",
    "super.users",
    "zookeeper.",
];

/// What the properties amount to.
#[derive(Clone, Debug, Default)]
struct Draft {
    topic: TopicConfig,
    /// `flush.messages`: on every acknowledgement, or by count never.
    flush_on_ack: Option<bool>,
    /// `flush.ms`; `Some(None)`: by time never.
    flush_interval: Option<Option<Duration>>,
    rebalance: Option<bool>,
    scrub_rate: Option<u64>,
    offsets_retention: Option<Duration>,
}

/// A set of properties as a user gave them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Properties {
    draft: Draft,
    /// Rows of [`KEYS`].
    given: Vec<usize>,
    ignored: Vec<String>,
}

impl Properties {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Takes one property.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`]: no such key (and the nearest one), or a value that does not fit.
    pub(crate) fn set(&mut self, key: &str, value: &str) -> Result<(), Error> {
        if let Some(row) = KEYS.iter().position(|(known, ..)| *known == key) {
            return self.set_row(row, value.trim()).map_err(|reason| invalid(key, value, &reason));
        }
        if is_of(NETWORK, key) {
            self.ignored.push(key.to_owned());
            return Ok(());
        }
        Err(unknown_key(key, value, KEYS.iter().map(|(known, ..)| *known)))
    }

    /// A value is checked even if a key that wins over this one was given before.
    fn set_row(&mut self, row: usize, value: &str) -> Result<(), String> {
        let (_, setting, set) = KEYS[row];
        let mut draft = self.draft.clone();
        set(&mut draft, value)?;
        draft.topic.check_ranges().map_err(|outside| outside.range.to_owned())?;
        if !self.given.iter().any(|given| *given < row && KEYS[*given].1 == setting) {
            self.draft = draft;
        }
        self.given.push(row);
        Ok(())
    }

    /// The defaults of new topics.
    pub(crate) fn topic_defaults(&self) -> TopicConfig {
        let flush = match (self.draft.flush_on_ack, self.draft.flush_interval) {
            (Some(true), _) | (None, None) => Flush::OnAck,
            (_, Some(Some(interval))) => Flush::Interval(interval),
            (Some(false), _) | (None, Some(None)) => Flush::Os,
        };
        self.draft.topic.clone().flush(flush)
    }

    /// Whether one of the properties chose the flush level.
    pub(crate) fn sets_flush(&self) -> bool {
        self.draft.flush_on_ack.is_some() || self.draft.flush_interval.is_some()
    }

    /// Whether preferred replicas lead again, if a property says so.
    pub(crate) fn rebalance(&self) -> Option<bool> {
        self.draft.rebalance
    }

    /// Bytes a second that a disk's scrub reads, if a property says so.
    pub(crate) fn scrub_rate(&self) -> Option<u64> {
        self.draft.scrub_rate
    }

    /// How long offsets of groups without members are kept, if one of the properties says so.
    pub(crate) fn offsets_retention(&self) -> Option<Duration> {
        self.draft.offsets_retention
    }

    /// Keys that were accepted and mean nothing here.
    pub(crate) fn ignored(&self) -> &[String] {
        &self.ignored
    }
}

/// Whether the key only means something on a network.
pub(super) fn is_of_network(key: &str) -> bool {
    is_of(NETWORK, key)
}

/// Whether the list has the key, or a beginning of it.
pub(super) fn is_of(list: &[&str], key: &str) -> bool {
    list.iter().any(|known| *known == key || (known.ends_with('.') && key.starts_with(known)))
}

/// There is no such key. Names the nearest of `names`, or of those of the network.
pub(super) fn unknown_key(
    key: &str,
    value: &str,
    names: impl Iterator<Item = &'static str>,
) -> Error {
    let whole = NETWORK.iter().copied().filter(|known| !known.ends_with('.'));
    let nearest = names.chain(whole).min_by_key(|known| distance(known, key)).unwrap_or_default();
    invalid(key, value, &format!("there is no such key; the nearest is {nearest}"))
}

pub(super) fn number<T: std::str::FromStr>(value: &str) -> Result<T, String> {
    value.parse().map_err(|_| "it is no number of that range".to_owned())
}

pub(super) fn boolean(value: &str) -> Result<bool, String> {
    match value.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("it is neither true nor false".to_owned()),
    }
}

/// A span of time, given in units of so many milliseconds.
pub(super) fn span(value: &str, unit_ms: u64) -> Result<Duration, String> {
    number::<u64>(value).map(|count| Duration::from_millis(count.saturating_mul(unit_ms)))
}

fn set_retention_bytes(draft: &mut Draft, value: &str) -> Result<(), String> {
    draft.topic.retention.bytes = if value == "-1" { None } else { Some(number(value)?) };
    Ok(())
}

fn set_retention(draft: &mut Draft, value: &str, unit_ms: u64) -> Result<(), String> {
    draft.topic.retention.age = if value == "-1" { None } else { Some(span(value, unit_ms)?) };
    Ok(())
}

fn check_cleanup_policy(_: &mut Draft, value: &str) -> Result<(), String> {
    match value {
        "delete" => Ok(()),
        "compact" | "compact,delete" | "delete,compact" => {
            Err("compaction is not supported yet; only delete".to_owned())
        }
        _ => Err("it is not delete".to_owned()),
    }
}

fn set_segment_bytes(draft: &mut Draft, value: &str) -> Result<(), String> {
    number(value).map(|bytes| draft.topic.segment_bytes = bytes)
}

fn set_segment_age(draft: &mut Draft, value: &str, unit_ms: u64) -> Result<(), String> {
    span(value, unit_ms).map(|age| draft.topic.segment_age = age)
}

fn set_max_batch_bytes(draft: &mut Draft, value: &str) -> Result<(), String> {
    number(value).map(|bytes| draft.topic.max_batch_bytes = bytes)
}

fn set_index_interval_bytes(draft: &mut Draft, value: &str) -> Result<(), String> {
    number(value).map(|bytes| draft.topic.index_interval_bytes = bytes)
}

fn set_timestamp_type(draft: &mut Draft, value: &str) -> Result<(), String> {
    draft.topic.timestamp_type = match value {
        "CreateTime" => TimestampType::CreateTime,
        "LogAppendTime" => TimestampType::AppendTime,
        _ => return Err("it is neither CreateTime nor LogAppendTime".to_owned()),
    };
    Ok(())
}

/// Kafka's default, its largest number, allows any timestamp.
fn distance_max(value: &str) -> Result<Option<Duration>, String> {
    let distance = span(value, 1)?;
    Ok((distance < Duration::from_millis(KAFKA_MAX)).then_some(distance))
}

fn set_before_max(draft: &mut Draft, value: &str) -> Result<(), String> {
    distance_max(value).map(|distance| draft.topic.timestamp_before_max = distance)
}

fn set_after_max(draft: &mut Draft, value: &str) -> Result<(), String> {
    distance_max(value).map(|distance| draft.topic.timestamp_after_max = distance)
}

fn set_compression(draft: &mut Draft, value: &str) -> Result<(), String> {
    draft.topic.compression = codec(value)?;
    Ok(())
}

/// A codec that this build has.
pub(super) fn codec(value: &str) -> Result<Compression, String> {
    let codec = match value {
        "uncompressed" | "none" | "producer" => Compression::None,
        "lz4" => Compression::Lz4,
        "zstd" => Compression::Zstd,
        "snappy" => Compression::Snappy,
        "gzip" => return Err("gzip is not supported; zstd packs better and faster".to_owned()),
        _ => return Err("it is none of uncompressed, lz4, zstd, snappy".to_owned()),
    };
    if !codec_is_available(codec) {
        return Err("its feature of the crate is not enabled".to_owned());
    }
    Ok(codec)
}

fn set_flush_ms(draft: &mut Draft, value: &str) -> Result<(), String> {
    let interval = span(value, 1)?;
    if interval.is_zero() {
        return Err("at least 1".to_owned());
    }
    let never = interval >= Duration::from_millis(KAFKA_MAX);
    draft.flush_interval = Some((!never).then_some(interval));
    Ok(())
}

/// 1 means before each acknowledgement; Kafka's default, its largest number, means never by count.
fn set_flush_messages(draft: &mut Draft, value: &str) -> Result<(), String> {
    draft.flush_on_ack = match number::<u64>(value)? {
        1 => Some(true),
        KAFKA_MAX => Some(false),
        _ => {
            return Err(format!(
                "only 1 (on every acknowledgement) or {KAFKA_MAX} (never by count)"
            ));
        }
    };
    Ok(())
}

/// Levenshtein's: how many letters have to change.
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, a) in one.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (column, b) in other.bytes().enumerate() {
            let swapped = diagonal + usize::from(a != b);
            diagonal = row[column + 1];
            row[column + 1] = swapped.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kafkas_keys_set_what_they_set_in_kafka() {
        let mut properties = Properties::new();
        for (key, value) in [
            ("retention.ms", "1000"),
            ("log.retention.bytes", "-1"),
            ("segment.bytes", "65536"),
            ("flush.messages", "1"),
            ("message.timestamp.type", "LogAppendTime"),
        ] {
            properties.set(key, value).unwrap();
        }
        let expected = TopicConfig::new()
            .retention(crate::config::Retention::age(Duration::from_secs(1)))
            .segment_bytes(65536)
            .timestamp_type(TimestampType::AppendTime);
        assert_eq!(properties.topic_defaults(), expected);
    }

    #[test]
    fn the_finer_unit_and_the_topics_key_win_in_any_order() {
        let keys = [
            ("log.retention.hours", "1"),
            ("log.retention.minutes", "2"),
            ("log.retention.ms", "3"),
            ("retention.ms", "4"),
        ];
        let age = |given: &[(&str, &str)]| {
            let mut properties = Properties::new();
            given.iter().for_each(|(key, value)| properties.set(key, value).unwrap());
            properties.topic_defaults().retention.max_age().unwrap().as_millis()
        };
        for (count, expected) in [(1, 3_600_000), (2, 120_000), (3, 3), (4, 4)] {
            let mut given = keys[..count].to_vec();
            assert_eq!(age(&given), expected);
            given.reverse();
            assert_eq!(age(&given), expected, "in reverse");
        }
        assert_eq!(
            age(&[("retention.ms", "4"), ("retention.ms", "5")]),
            5,
            "the later of the same"
        );
    }

    #[test]
    fn the_flush_level_follows_from_count_and_time_together() {
        let (never, ms) = ("9223372036854775807", Flush::Interval(Duration::from_millis(7)));
        for (messages, time, expected) in [
            (None, None, Flush::OnAck),
            (Some("1"), None, Flush::OnAck),
            (Some("1"), Some("7"), Flush::OnAck),
            (Some("1"), Some(never), Flush::OnAck),
            (Some(never), None, Flush::Os),
            (Some(never), Some("7"), ms),
            (Some(never), Some(never), Flush::Os),
            (None, Some("7"), ms),
            (None, Some(never), Flush::Os),
        ] {
            let mut given = vec![("flush.messages", messages), ("flush.ms", time)];
            for _ in 0..2 {
                let mut properties = Properties::new();
                for (key, value) in &given {
                    if let Some(value) = value {
                        properties.set(key, value).unwrap();
                    }
                }
                assert_eq!(properties.topic_defaults().flush, expected, "{given:?}");
                assert_eq!(properties.sets_flush(), messages.is_some() || time.is_some());
                given.reverse();
            }
        }
    }

    #[test]
    fn kafkas_own_defaults_are_taken() {
        for (key, value) in [
            ("num.partitions", "1"),
            ("default.replication.factor", "1"),
            ("min.insync.replicas", "1"),
            ("retention.bytes", "-1"),
            ("log.retention.hours", "168"),
            ("cleanup.policy", "delete"),
            ("segment.bytes", "1073741824"),
            ("log.roll.hours", "168"),
            ("message.max.bytes", "1048588"),
            ("message.timestamp.type", "CreateTime"),
            ("message.timestamp.before.max.ms", "9223372036854775807"),
            ("message.timestamp.after.max.ms", "3600000"),
            ("compression.type", "producer"),
            ("index.interval.bytes", "4096"),
            ("unclean.leader.election.enable", "false"),
            ("flush.messages", "9223372036854775807"),
            ("flush.ms", "9223372036854775807"),
            ("listeners", "PLAINTEXT://:9092"),
            ("zookeeper.connect", ""),
        ] {
            let mut properties = Properties::new();
            properties.set(key, value).unwrap();
            assert_eq!(properties.topic_defaults().timestamp_before_max, None);
        }
    }

    #[test]
    fn no_key_stands_twice_and_the_keys_of_a_setting_stand_together() {
        let names: Vec<_> =
            KEYS.iter().map(|(key, ..)| *key).chain(NETWORK.iter().copied()).collect();
        for (at, name) in names.iter().enumerate() {
            assert!(!names[..at].contains(name), "{name}");
        }
        let mut settings: Vec<_> = KEYS.iter().map(|(_, setting, _)| *setting).collect();
        settings.dedup();
        for (at, setting) in settings.iter().enumerate() {
            assert!(!settings[..at].contains(setting), "{setting:?}");
        }
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_one() {
        let refused = Properties::new().set("retention.m", "1").unwrap_err().to_string();
        assert!(refused.contains("retention.ms"), "{refused}");
    }

    #[test]
    fn keys_of_the_network_are_accepted_and_listed() {
        let mut properties = Properties::new();
        properties.set("ssl.keystore.location", "x").unwrap();
        properties.set("bootstrap.servers", "x:1").unwrap();
        assert_eq!(properties.ignored(), ["ssl.keystore.location", "bootstrap.servers"]);
    }

    #[test]
    fn a_value_that_does_not_fit_is_refused_under_its_key() {
        for (key, value) in [
            ("segment.bytes", "many"),
            ("log.segment.bytes", "1"),
            ("num.partitions", "-1"),
            ("num.partitions", "0"),
            ("retention.ms", "-2"),
            ("retention.bytes", "18446744073709551616"),
            ("compression.type", "gzip"),
            ("cleanup.policy", "compact"),
            ("flush.messages", "7"),
            ("flush.ms", "0"),
            ("unclean.leader.election.enable", "yes"),
            ("message.timestamp.type", "createtime"),
        ] {
            let mut properties = Properties::new();
            let refused = properties.set(key, value);
            assert!(
                matches!(&refused, Err(Error::InvalidConfig { key: named, .. }) if named == key),
                "A2: {key} = {value}: {refused:?}"
            );
            assert_eq!(properties.topic_defaults(), TopicConfig::new(), "nothing was changed");
        }
    }

    #[test]
    fn a_codec_is_taken_where_it_is_compiled_in() {
        for (name, codec) in [
            ("lz4", Compression::Lz4),
            ("zstd", Compression::Zstd),
            ("snappy", Compression::Snappy),
        ] {
            let taken = Properties::new().set("compression.type", name).is_ok();
            assert_eq!(taken, codec_is_available(codec), "A2: {name}");
        }
    }
}
