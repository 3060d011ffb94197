//! Which names topics may have.

use crate::error::Error;

/// Kafka's limit: a directory's name also bears the partition.
const CHARS_MAX: usize = 249;

/// Checks a topic's name by Kafka's rules: 1 to 249 of `a-z A-Z 0-9 . _ -`, and not `.` or `..`.
///
/// # Errors
/// [`Error::InvalidTopic`].
pub(crate) fn validate_topic_name(name: &str) -> Result<(), Error> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let reason = if name.is_empty() {
        "it is empty".to_owned()
    } else if name == "." || name == ".." {
        "it names a directory".to_owned()
    } else if name.len() > CHARS_MAX {
        format!("it has {} bytes, at most {CHARS_MAX} are allowed", name.len())
    } else if let Some(other) = name.chars().find(|char| !char.is_ascii() || !allowed(*char as u8))
    {
        format!("{other:?} is not one of a-z A-Z 0-9 . _ -")
    } else {
        return Ok(());
    };
    Err(Error::InvalidTopic { topic: name.to_owned(), reason })
}

/// Topics whose names begin so are the store's own.
pub(crate) const INTERNAL_PREFIX: &str = "__";

/// Whether a topic is one of the store's own.
pub(crate) fn is_internal(name: &str) -> bool {
    name.starts_with(INTERNAL_PREFIX)
}

/// Whether an application may make, change, delete and append to a topic of that name.
///
/// # Errors
/// [`Error::InvalidTopic`] if it is one of the store's own.
pub(crate) fn check_not_internal(name: &str) -> Result<(), Error> {
    if !is_internal(name) {
        return Ok(());
    }
    let reason = format!("names that begin with {INTERNAL_PREFIX} are the store's own");
    Err(Error::InvalidTopic { topic: name.to_owned(), reason })
}

/// Whether two names are too much alike: equal but for case, or for `.` and `_`, which Kafka's metrics
/// cannot tell apart.
pub(crate) fn collides(one: &str, other: &str) -> bool {
    let plain = |byte: u8| if byte == b'.' { b'_' } else { byte.to_ascii_lowercase() };
    one.bytes().map(plain).eq(other.bytes().map(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_kafka_takes_are_taken_and_no_others() {
        for good in ["a", "orders", "A.b_c-9", &"x".repeat(249), "...", "_"] {
            assert!(validate_topic_name(good).is_ok(), "A1: {good}");
        }
        for bad in
            ["", ".", "..", "a/b", "a\\b", "a\0", "a b", "\u{e4}", &"x".repeat(250), "a\n", "../x"]
        {
            assert!(
                matches!(validate_topic_name(bad), Err(Error::InvalidTopic { .. })),
                "A1: {bad:?}"
            );
        }
    }

    #[test]
    fn names_that_differ_by_case_or_by_dot_for_underscore_collide() {
        assert!(collides("Orders", "orders") && collides("a.b", "a_b"), "A1");
        assert!(!collides("a-b", "a_b") && !collides("a", "aa"), "A1");
    }
}
