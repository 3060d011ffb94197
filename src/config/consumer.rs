//! Settings of a consumer, with Kafka's keys for them.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::types::{Isolation, Timestamp};

use super::property::{boolean, is_of, is_of_network, number, span, unknown_key};
use super::topic::invalid;

/// Where a consumer begins in a partition for which its group has committed nothing, and where it goes on when its
/// position is not in the log any more (`auto.offset.reset`).
///
/// # Examples
/// ```
/// use oncelog::{StartAt, Store};
/// let store = Store::in_memory(1)?;
/// let consumer = store.consumer().group("billing").start(StartAt::Earliest).build()?;
/// # let _ = consumer;
/// # Ok::<(), oncelog::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StartAt {
    /// At the first record that there is.
    Earliest,
    /// Behind the last record that can be read.
    Latest,
    /// At the first record that is not older.
    Time(Timestamp),
    /// Nowhere: [`Error::NoOffset`], so that nobody skips or repeats what they did not mean to.
    #[default]
    Error,
}

/// What a consumer goes by.
#[derive(Clone, Debug)]
pub(crate) struct ConsumerSettings {
    pub(crate) group: Option<Arc<str>>,
    pub(crate) instance: Option<Arc<str>>,
    pub(crate) start: StartAt,
    pub(crate) isolation: Isolation,
    pub(crate) max_poll_records: u64,
    /// About how much a poll returns.
    pub(crate) max_bytes: usize,
    pub(crate) max_poll_interval: Duration,
    /// How often what earlier polls have handed out is committed; `None`: when the application says so.
    pub(crate) auto_commit: Option<Duration>,
    /// How long a commit may take.
    pub(crate) api_timeout: Duration,
    pub(crate) assignor: AssignorName,
}

/// An assignor that comes with the crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AssignorName {
    Range,
    RoundRobin,
    Sticky,
    CooperativeSticky,
}

/// Kafka's default of `auto.commit.interval.ms`.
const AUTO_COMMIT: Duration = Duration::from_secs(5);

impl Default for ConsumerSettings {
    fn default() -> Self {
        Self {
            group: None,
            instance: None,
            start: StartAt::Error,
            isolation: Isolation::ReadUncommitted,
            max_poll_records: u64::MAX,
            max_bytes: 1 << 20,
            max_poll_interval: Duration::from_secs(300),
            auto_commit: None,
            api_timeout: Duration::from_secs(60),
            assignor: AssignorName::CooperativeSticky,
        }
    }
}

impl ConsumerSettings {
    /// Whether the settings fit together.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] names the key that does not.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        if self.max_poll_records == 0 {
            return Err(invalid("max.poll.records", "0", "at least 1"));
        }
        if self.max_bytes == 0 {
            return Err(invalid("fetch.max.bytes", "0", "at least 1"));
        }
        if self.max_poll_interval < Duration::from_millis(1) {
            return Err(invalid("max.poll.interval.ms", "0", "at least 1"));
        }
        if self.group.is_none() && self.auto_commit.is_some() {
            return Err(invalid("enable.auto.commit", "true", "there is no group.id"));
        }
        Ok(())
    }
}

type Set = fn(&mut ConsumerSettings, &str) -> Result<(), String>;

const KEYS: &[(&str, Set)] = &[
    ("group.id", |settings, value| {
        settings.group = Some(value.into());
        Ok(())
    }),
    ("group.instance.id", |settings, value| {
        settings.instance = Some(value.into());
        Ok(())
    }),
    ("auto.offset.reset", set_start),
    ("isolation.level", set_isolation),
    ("max.poll.records", |settings, value| {
        number(value).map(|count| settings.max_poll_records = count)
    }),
    ("fetch.max.bytes", |settings, value| number(value).map(|bytes| settings.max_bytes = bytes)),
    ("max.poll.interval.ms", |settings, value| {
        span(value, 1).map(|interval| settings.max_poll_interval = interval)
    }),
    ("enable.auto.commit", |settings, value| {
        boolean(value).map(|on| {
            settings.auto_commit = on.then(|| settings.auto_commit.unwrap_or(AUTO_COMMIT));
        })
    }),
    ("auto.commit.interval.ms", |settings, value| {
        span(value, 1).map(|interval| settings.auto_commit = Some(interval))
    }),
    ("default.api.timeout.ms", |settings, value| {
        span(value, 1).map(|timeout| settings.api_timeout = timeout)
    }),
    ("partition.assignment.strategy", set_assignor),
];

/// Keys of Kafka's consumers that mean nothing in one process, besides those of every client.
const IGNORED: &[&str] = &[
    "allow.auto.create.topics",
    "check.crcs",
    "exclude.internal.topics",
    "fetch.max.wait.ms",
    "fetch.min.bytes",
    "group.protocol",
    "group.remote.assignor",
    "heartbeat.interval.ms",
    "interceptor.classes",
    "key.deserializer",
    "max.partition.fetch.bytes",
    "request.timeout.ms",
    "retry.backoff.max.ms",
    "retry.backoff.ms",
    "session.timeout.ms",
    "share.",
    "value.deserializer",
];

/// Properties as a user gave them, on top of settings.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConsumerProperties {
    ignored: Vec<String>,
}

impl ConsumerProperties {
    /// Takes one property into `settings`.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`]: no such key (and the nearest one), or a value that does not fit.
    pub(crate) fn set(
        &mut self,
        settings: &mut ConsumerSettings,
        key: &str,
        value: &str,
    ) -> Result<(), Error> {
        if let Some((_, set)) = KEYS.iter().find(|(known, _)| *known == key) {
            return set(settings, value.trim()).map_err(|reason| invalid(key, value, &reason));
        }
        if is_of_network(key) || is_of(IGNORED, key) {
            self.ignored.push(key.to_owned());
            return Ok(());
        }
        Err(unknown_key(key, value, KEYS.iter().map(|(known, _)| *known)))
    }

    /// Keys that were accepted and mean nothing here.
    pub(crate) fn ignored(&self) -> &[String] {
        &self.ignored
    }
}

fn set_start(settings: &mut ConsumerSettings, value: &str) -> Result<(), String> {
    settings.start = match value {
        "earliest" => StartAt::Earliest,
        "latest" => StartAt::Latest,
        "none" => StartAt::Error,
        _ => return Err("it is none of earliest, latest, none".to_owned()),
    };
    Ok(())
}

fn set_isolation(settings: &mut ConsumerSettings, value: &str) -> Result<(), String> {
    settings.isolation = match value {
        "read_committed" => Isolation::ReadCommitted,
        "read_uncommitted" => Isolation::ReadUncommitted,
        _ => return Err("it is neither read_committed nor read_uncommitted".to_owned()),
    };
    Ok(())
}

/// By Kafka's class, with its package or without, or by the assignor's name. Of a list, the first counts.
fn set_assignor(settings: &mut ConsumerSettings, value: &str) -> Result<(), String> {
    let first = value.split(',').next().unwrap_or_default().trim();
    settings.assignor = match first.rsplit('.').next().unwrap_or_default() {
        "RangeAssignor" | "range" => AssignorName::Range,
        "RoundRobinAssignor" | "roundrobin" => AssignorName::RoundRobin,
        "StickyAssignor" | "sticky" => AssignorName::Sticky,
        "CooperativeStickyAssignor" | "cooperative-sticky" => AssignorName::CooperativeSticky,
        _ => return Err("it is none of range, roundrobin, sticky, cooperative-sticky".to_owned()),
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(properties: &[(&str, &str)]) -> Result<(ConsumerSettings, Vec<String>), Error> {
        let mut settings = ConsumerSettings::default();
        let mut all = ConsumerProperties::default();
        for (key, value) in properties {
            all.set(&mut settings, key, value)?;
        }
        settings.validate()?;
        Ok((settings, all.ignored().to_vec()))
    }

    #[test]
    fn kafkas_keys_set_what_they_set_in_kafka() {
        let (settings, ignored) = given(&[
            ("group.id", "billing"),
            ("group.instance.id", "one"),
            ("auto.offset.reset", "latest"),
            ("isolation.level", "read_committed"),
            ("max.poll.records", "500"),
            ("fetch.max.bytes", "1000"),
            ("max.poll.interval.ms", "7"),
            ("auto.commit.interval.ms", "9"),
            ("enable.auto.commit", "true"),
            ("default.api.timeout.ms", "11"),
            ("partition.assignment.strategy", "org.apache.kafka.clients.consumer.RangeAssignor"),
            ("session.timeout.ms", "45000"),
            ("bootstrap.servers", "localhost:9092"),
        ])
        .unwrap();
        let millis = Duration::from_millis;
        assert_eq!(settings.group.as_deref(), Some("billing"));
        assert_eq!(settings.instance.as_deref(), Some("one"));
        assert_eq!(
            (settings.start, settings.isolation),
            (StartAt::Latest, Isolation::ReadCommitted)
        );
        assert_eq!((settings.max_poll_records, settings.max_bytes), (500, 1000));
        assert_eq!(settings.max_poll_interval, millis(7));
        assert_eq!((settings.auto_commit, settings.api_timeout), (Some(millis(9)), millis(11)));
        assert_eq!(settings.assignor, AssignorName::Range);
        assert_eq!(ignored, ["session.timeout.ms", "bootstrap.servers"]);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_names_the_nearest_key() {
        for (key, value, hint) in [
            ("auto.offset.reset", "begin", "none of"),
            ("auto.offset.rest", "latest", "auto.offset.reset"),
            ("isolation.level", "serializable", "neither"),
            ("max.poll.records", "0", "at least 1"),
            ("fetch.max.bytes", "0", "at least 1"),
            ("max.poll.interval.ms", "0", "at least 1"),
            ("enable.auto.commit", "true", "no group.id"),
            ("partition.assignment.strategy", "mine", "none of"),
        ] {
            let error = given(&[(key, value)]).unwrap_err().to_string();
            assert!(error.contains(hint), "{key}={value}: {error}");
        }
        let off = given(&[("group.id", "g"), ("enable.auto.commit", "false")]).unwrap();
        assert_eq!(off.0.auto_commit, None);
    }
}
