//! Kafka's configuration keys, and what they mean here.
//!
//! One table: a key either sets something of the topics' defaults, or it only means something on a
//! network (or to a cluster) and is accepted and listed, so that one configuration serves both. Any
//! other key is an error that names the nearest one there is.

use std::time::Duration;

use crate::error::Error;
use crate::types::{Compression, Flush, TimestampType};

use super::TopicConfig;
use super::topic::invalid;

type Set = fn(&mut TopicConfig, &str) -> Result<(), String>;

/// Keys that set something. Where the broker's name differs from the topic's, both stand here.
const KEYS: &[(&str, Set)] = &[
    ("num.partitions", |config, value| number(value).map(|n| config.partitions = n)),
    ("default.replication.factor", |config, value| number(value).map(|n| config.replication_factor = n)),
    ("min.insync.replicas", |config, value| number(value).map(|n| config.min_insync_replicas = n)),
    ("retention.bytes", set_retention_bytes),
    ("log.retention.bytes", set_retention_bytes),
    ("retention.ms", |config, value| set_retention(config, value, 1)),
    ("log.retention.ms", |config, value| set_retention(config, value, 1)),
    ("log.retention.minutes", |config, value| set_retention(config, value, 60_000)),
    ("log.retention.hours", |config, value| set_retention(config, value, 3_600_000)),
    ("segment.bytes", |config, value| number(value).map(|n| config.segment_bytes = n)),
    ("log.segment.bytes", |config, value| number(value).map(|n| config.segment_bytes = n)),
    ("segment.ms", |config, value| millis(value).map(|span| config.segment_age = span)),
    ("log.roll.ms", |config, value| millis(value).map(|span| config.segment_age = span)),
    ("log.roll.hours", |config, value| {
        number::<u64>(value).map(|n| config.segment_age = Duration::from_secs(n.saturating_mul(3600)))
    }),
    ("max.message.bytes", |config, value| number(value).map(|n| config.max_batch_bytes = n)),
    ("message.max.bytes", |config, value| number(value).map(|n| config.max_batch_bytes = n)),
    ("message.timestamp.type", set_timestamp_type),
    ("log.message.timestamp.type", set_timestamp_type),
    ("message.timestamp.before.max.ms", set_before_max),
    ("log.message.timestamp.before.max.ms", set_before_max),
    ("message.timestamp.after.max.ms", set_after_max),
    ("log.message.timestamp.after.max.ms", set_after_max),
    ("compression.type", set_compression),
    ("index.interval.bytes", |config, value| number(value).map(|n| config.index_interval_bytes = n)),
    ("log.index.interval.bytes", |config, value| number(value).map(|n| config.index_interval_bytes = n)),
    ("unclean.leader.election.enable", |config, value| {
        boolean(value).map(|on| config.unclean_leader_election = on)
    }),
    ("flush.ms", set_flush_ms),
    ("log.flush.interval.ms", set_flush_ms),
    ("flush.messages", set_flush_messages),
    ("log.flush.interval.messages", set_flush_messages),
];

/// Keys, and beginnings of keys (with a dot at the end), that have no meaning in one process.
const NETWORK: &[&str] = &[
    "advertised.listeners",
    "auto.create.topics.enable",
    "bootstrap.servers",
    "broker.id",
    "broker.rack",
    "client.dns.lookup",
    "client.id",
    "client.rack",
    "connections.max.idle.ms",
    "connections.max.reauth.ms",
    "control.plane.listener.name",
    "controller.",
    "inter.broker.",
    "listener.",
    "listeners",
    "max.connections",
    "max.connections.per.ip",
    "metadata.max.age.ms",
    "metadata.recovery.strategy",
    "node.id",
    "num.io.threads",
    "num.network.threads",
    "num.replica.fetchers",
    "process.roles",
    "quota.",
    "queued.max.requests",
    "receive.buffer.bytes",
    "reconnect.backoff.max.ms",
    "reconnect.backoff.ms",
    "replica.fetch.",
    "replica.socket.",
    "sasl.",
    "security.",
    "send.buffer.bytes",
    "socket.",
    "ssl.",
    "zookeeper.",
];

/// A set of properties as a user gave them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Properties {
    topic: TopicConfig,
    flush_set: bool,
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
        if let Some((_, set)) = KEYS.iter().find(|(known, _)| *known == key) {
            set(&mut self.topic, value.trim()).map_err(|reason| invalid(key, value, &reason))?;
            self.flush_set |= key.contains("flush");
            return Ok(());
        }
        let begins = |known: &&str| *known == key || (known.ends_with('.') && key.starts_with(*known));
        if NETWORK.iter().any(|known| begins(&known)) {
            self.ignored.push(key.to_owned());
            return Ok(());
        }
        let names = KEYS.iter().map(|(known, _)| *known).chain(NETWORK.iter().copied());
        let nearest = names.min_by_key(|known| distance(known, key)).unwrap_or_default();
        Err(invalid(key, value, &format!("there is no such key; the nearest is {nearest}")))
    }

    /// The defaults of new topics.
    pub(crate) fn topic_defaults(&self) -> TopicConfig {
        self.topic.clone()
    }

    /// Whether one of the properties chose the flush level.
    pub(crate) fn sets_flush(&self) -> bool {
        self.flush_set
    }

    /// Keys that were accepted and mean nothing here.
    pub(crate) fn ignored(&self) -> &[String] {
        &self.ignored
    }
}

fn number<T: std::str::FromStr>(value: &str) -> Result<T, String> {
    value.parse().map_err(|_| "it is no number of that range".to_owned())
}

fn boolean(value: &str) -> Result<bool, String> {
    match value.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("it is neither true nor false".to_owned()),
    }
}

fn millis(value: &str) -> Result<Duration, String> {
    number(value).map(Duration::from_millis)
}

/// A number of which -1 stands for "no limit".
fn limit(value: &str) -> Result<Option<u64>, String> {
    if value == "-1" { Ok(None) } else { number(value).map(Some) }
}

fn set_retention_bytes(config: &mut TopicConfig, value: &str) -> Result<(), String> {
    config.retention.bytes = limit(value)?;
    Ok(())
}

fn set_retention(config: &mut TopicConfig, value: &str, unit: u64) -> Result<(), String> {
    let span = limit(value)?.map(|count| Duration::from_millis(count.saturating_mul(unit)));
    config.retention.age = span;
    Ok(())
}

fn set_timestamp_type(config: &mut TopicConfig, value: &str) -> Result<(), String> {
    config.timestamp_type = match value {
        "CreateTime" => TimestampType::CreateTime,
        "LogAppendTime" => TimestampType::AppendTime,
        _ => return Err("it is neither CreateTime nor LogAppendTime".to_owned()),
    };
    Ok(())
}

fn set_before_max(config: &mut TopicConfig, value: &str) -> Result<(), String> {
    config.timestamp_before_max = Some(millis(value)?);
    Ok(())
}

fn set_after_max(config: &mut TopicConfig, value: &str) -> Result<(), String> {
    config.timestamp_after_max = Some(millis(value)?);
    Ok(())
}

fn set_compression(config: &mut TopicConfig, value: &str) -> Result<(), String> {
    config.compression = match value {
        "uncompressed" | "none" | "producer" => Compression::None,
        "lz4" => Compression::Lz4,
        "zstd" => Compression::Zstd,
        "snappy" => Compression::Snappy,
        "gzip" => return Err("gzip is not supported; zstd packs better and faster".to_owned()),
        _ => return Err("it is none of uncompressed, lz4, zstd, snappy".to_owned()),
    };
    Ok(())
}

fn set_flush_ms(config: &mut TopicConfig, value: &str) -> Result<(), String> {
    let span = millis(value)?;
    config.flush = if span.as_millis() > u128::from(u32::MAX) { Flush::Os } else { Flush::Interval(span) };
    Ok(())
}

/// 1 means before each acknowledgement; Kafka's default, the largest number, means never.
fn set_flush_messages(config: &mut TopicConfig, value: &str) -> Result<(), String> {
    config.flush = match number::<u64>(value)? {
        1 => Flush::OnAck,
        9_223_372_036_854_775_807 => Flush::Os,
        _ => return Err("only 1 (on every acknowledgement) or the largest number (never)".to_owned()),
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
        for (key, value) in [("segment.bytes", "many"), ("compression.type", "gzip"), ("flush.messages", "7")] {
            let refused = Properties::new().set(key, value);
            assert!(matches!(refused, Err(Error::InvalidConfig { key: named, .. }) if named == key));
        }
    }
}
