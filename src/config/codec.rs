//! The codecs that a batch may be packed with: their numbers, and which are compiled in.
//!
//! The numbers are Kafka's, so that whoever knows its format reads them at sight. They stand in every
//! batch and in every topic's settings: none is ever used for anything else.

use crate::types::Compression;

/// The codec's number; 1 is Kafka's gzip, which is not read.
pub(crate) fn codec_code(codec: Compression) -> u16 {
    match codec {
        Compression::None => 0,
        Compression::Snappy => 2,
        Compression::Lz4 => 3,
        Compression::Zstd => 4,
    }
}

/// The codec of a number.
pub(crate) fn codec_of(code: u16) -> Option<Compression> {
    match code {
        0 => Some(Compression::None),
        2 => Some(Compression::Snappy),
        3 => Some(Compression::Lz4),
        4 => Some(Compression::Zstd),
        _ => None,
    }
}

/// Whether the codec is compiled in.
pub(crate) fn codec_is_available(codec: Compression) -> bool {
    match codec {
        Compression::None => true,
        Compression::Lz4 => cfg!(feature = "lz4"),
        Compression::Zstd => cfg!(feature = "zstd"),
        Compression::Snappy => cfg!(feature = "snappy"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_kafkas_and_gzip_is_refused() {
        for (code, codec) in [
            (0, Some(Compression::None)),
            (1, None),
            (2, Some(Compression::Snappy)),
            (3, Some(Compression::Lz4)),
            (4, Some(Compression::Zstd)),
        ] {
            assert_eq!(codec_of(code), codec);
            assert!(codec.is_none_or(|codec| codec_code(codec) == code));
        }
        assert!((5..=u16::MAX).all(|code| codec_of(code).is_none()));
    }
}
