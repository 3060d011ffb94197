//! Settings of a producer, with Kafka's keys for them.

use std::time::Duration;

use crate::error::Error;
use crate::types::{Acks, Compression};

use super::property::{boolean, codec, is_of, is_of_network, number, span, unknown_key};
use super::topic::invalid;

/// What a producer goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProducerSettings {
    pub(crate) acks: Acks,
    pub(crate) idempotent: bool,
    /// How long a batch waits for company.
    pub(crate) linger: Duration,
    /// A batch of that size waits for nothing.
    pub(crate) batch_bytes: u64,
    /// What may be gathered and under way in all partitions together.
    pub(crate) buffer_bytes: u64,
    /// How long `send` waits for room in the buffer.
    pub(crate) max_block: Duration,
    /// From `send` to the end of the last retry.
    pub(crate) delivery_timeout: Duration,
    pub(crate) retries: u32,
    /// Before the first retry; doubles from one to the next.
    pub(crate) retry_backoff: Duration,
    pub(crate) retry_backoff_max: Duration,
    /// Instead of the topic's.
    pub(crate) compression: Option<Compression>,
}

impl Default for ProducerSettings {
    fn default() -> Self {
        Self {
            acks: Acks::All,
            idempotent: true,
            linger: Duration::ZERO,
            batch_bytes: 64 << 10,
            buffer_bytes: 32 << 20,
            max_block: Duration::from_secs(60),
            delivery_timeout: Duration::from_secs(120),
            retries: u32::MAX,
            retry_backoff: Duration::from_millis(10),
            retry_backoff_max: Duration::from_secs(1),
            compression: None,
        }
    }
}

impl ProducerSettings {
    /// Whether the settings fit together.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] names the key that does not (CLI-02).
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let millis = |span: Duration| span.as_millis().to_string();
        if self.delivery_timeout < self.linger || self.delivery_timeout.is_zero() {
            return Err(invalid(
                "delivery.timeout.ms",
                millis(self.delivery_timeout),
                "at least 1, and not less than linger.ms",
            ));
        }
        if !(1..=MEMORY_MAX).contains(&self.batch_bytes) {
            return Err(invalid("batch.size", self.batch_bytes.to_string(), "1 to 2^40 bytes"));
        }
        if !(1..=MEMORY_MAX).contains(&self.buffer_bytes) {
            let given = self.buffer_bytes.to_string();
            return Err(invalid("buffer.memory", given, "1 to 2^40 bytes"));
        }
        Ok(())
    }
}

/// What a producer of transactions goes by, besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TransactionSettings {
    /// How long one may be open.
    pub(crate) timeout: Duration,
}

impl Default for TransactionSettings {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(60) }
    }
}

impl TransactionSettings {
    /// Takes a property, if it is one of a transaction's.
    pub(crate) fn set(&mut self, key: &str, value: &str) -> Option<Result<(), Error>> {
        if key != "transaction.timeout.ms" {
            return None;
        }
        let set = span(value.trim(), 1).map(|timeout| self.timeout = timeout);
        Some(set.map_err(|reason| invalid(key, value, &reason)))
    }
}

/// No machine has more, and sums of it do not overflow.
const MEMORY_MAX: u64 = 1 << 40;

type Set = fn(&mut ProducerSettings, &str) -> Result<(), String>;

const KEYS: &[(&str, Set)] = &[
    ("acks", set_acks),
    ("enable.idempotence", |settings, value| boolean(value).map(|on| settings.idempotent = on)),
    ("linger.ms", |settings, value| span(value, 1).map(|linger| settings.linger = linger)),
    ("batch.size", |settings, value| number(value).map(|bytes| settings.batch_bytes = bytes)),
    ("buffer.memory", |settings, value| number(value).map(|bytes| settings.buffer_bytes = bytes)),
    ("max.block.ms", |settings, value| span(value, 1).map(|block| settings.max_block = block)),
    ("delivery.timeout.ms", |settings, value| {
        span(value, 1).map(|timeout| settings.delivery_timeout = timeout)
    }),
    ("retries", |settings, value| number(value).map(|count| settings.retries = count)),
    ("retry.backoff.ms", |settings, value| {
        span(value, 1).map(|backoff| settings.retry_backoff = backoff)
    }),
    ("retry.backoff.max.ms", |settings, value| {
        span(value, 1).map(|backoff| settings.retry_backoff_max = backoff)
    }),
    ("compression.type", |settings, value| {
        codec(value).map(|codec| settings.compression = Some(codec))
    }),
];

/// Keys of Kafka's producers that mean nothing in one process, besides those of every client.
const IGNORED: &[&str] = &[
    "compression.",
    "interceptor.classes",
    "key.serializer",
    "max.in.flight.requests.per.connection",
    "max.request.size",
    "metadata.max.idle.ms",
    "partitioner.",
    "request.timeout.ms",
    "value.serializer",
];

/// Properties as a user gave them, on top of settings.
#[derive(Clone, Debug, Default)]
pub(crate) struct ProducerProperties {
    ignored: Vec<String>,
}

impl ProducerProperties {
    /// Takes one property into `settings`.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`]: no such key (and the nearest one), or a value that does not fit.
    pub(crate) fn set(
        &mut self,
        settings: &mut ProducerSettings,
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

fn set_acks(settings: &mut ProducerSettings, value: &str) -> Result<(), String> {
    settings.acks = match value {
        "0" => Acks::None,
        "1" => Acks::Leader,
        "all" | "-1" => Acks::All,
        _ => return Err("it is none of 0, 1, all, -1".to_owned()),
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(properties: &[(&str, &str)]) -> Result<(ProducerSettings, Vec<String>), Error> {
        let mut settings = ProducerSettings::default();
        let mut all = ProducerProperties::default();
        for (key, value) in properties {
            all.set(&mut settings, key, value)?;
        }
        settings.validate()?;
        Ok((settings, all.ignored().to_vec()))
    }

    #[test]
    fn kafkas_keys_set_what_they_set_in_kafka() {
        let (settings, ignored) = given(&[
            ("acks", "1"),
            ("enable.idempotence", "false"),
            ("linger.ms", "5"),
            ("batch.size", "16384"),
            ("buffer.memory", "1000000"),
            ("max.block.ms", "7"),
            ("delivery.timeout.ms", "30000"),
            ("retries", "3"),
            ("retry.backoff.ms", "100"),
            ("retry.backoff.max.ms", "1000"),
            ("compression.type", "none"),
            ("bootstrap.servers", "localhost:9092"),
            ("key.serializer", "StringSerializer"),
        ])
        .unwrap();
        let millis = Duration::from_millis;
        let expected = ProducerSettings {
            acks: Acks::Leader,
            idempotent: false,
            linger: millis(5),
            batch_bytes: 16384,
            buffer_bytes: 1_000_000,
            max_block: millis(7),
            delivery_timeout: millis(30_000),
            retries: 3,
            retry_backoff: millis(100),
            retry_backoff_max: millis(1000),
            compression: Some(Compression::None),
        };
        assert_eq!(settings, expected);
        assert_eq!(ignored, ["bootstrap.servers", "key.serializer"]);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_names_the_nearest_key() {
        for (key, value, hint) in [
            ("acks", "2", "none of"),
            ("lingr.ms", "2", "linger.ms"),
            ("batch.size", "-1", "number"),
            ("batch.size", "0", "bytes"),
            ("buffer.memory", "0", "bytes"),
            ("delivery.timeout.ms", "0", "at least 1"),
            ("retries", "-1", "number"),
        ] {
            let error = given(&[(key, value)]).unwrap_err().to_string();
            assert!(error.contains(hint), "{key}={value}: {error}");
        }
    }

    #[test]
    fn cli_02_a_delivery_has_time_for_its_linger() {
        assert!(given(&[("linger.ms", "50"), ("delivery.timeout.ms", "49")]).is_err());
        assert!(given(&[("linger.ms", "50"), ("delivery.timeout.ms", "50")]).is_ok());
    }
}
