//! Packing the records of a batch, and the codecs' numbers. The codecs are features of the crate.
//!
//! The numbers are Kafka's, so that whoever knows its format reads them at sight. They stand in every
//! batch and in every topic's settings: none is ever used for anything else.

use crate::error::DecodeError;
use crate::types::Compression;

use super::buffer::Buffer;

/// No codec packs tighter than this: four bytes of Zstandard can stand for 128 KiB, one byte of LZ4 for
/// 255, three bytes of Snappy for 64. A length out of that proportion is refused before it is allocated.
const RATIO_MAX: usize = 1 << 15;

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

/// Appends `plain`, packed, to `target`.
///
/// # Errors
/// [`DecodeError::Decompress`] if the codec is missing or fails.
pub(super) fn compress(
    codec: Compression,
    plain: &[u8],
    target: &mut Buffer,
) -> Result<(), DecodeError> {
    match codec {
        Compression::None => target.put(plain),
        #[cfg(feature = "lz4")]
        Compression::Lz4 => target.put(&lz4_flex::block::compress(plain)),
        #[cfg(feature = "zstd")]
        Compression::Zstd => {
            let packed =
                zstd::bulk::compress(plain, zstd::DEFAULT_COMPRESSION_LEVEL).map_err(failed)?;
            target.put(&packed);
        }
        #[cfg(feature = "snappy")]
        Compression::Snappy => {
            let packed = snap::raw::Encoder::new().compress_vec(plain).map_err(failed)?;
            target.put(&packed);
        }
        #[allow(unreachable_patterns, reason = "every codec may be compiled in")]
        missing => return Err(absent(missing)),
    }
    Ok(())
}

/// Unpacks into `target`, which is exactly `len` bytes afterwards; never takes more memory than that.
///
/// # Errors
/// [`DecodeError::Field`] if the bytes do not unpack to that length; [`DecodeError::Decompress`] if the
/// codec refuses them or is missing, or there is no memory. What `target` holds is then undefined.
pub(super) fn decompress(
    codec: Compression,
    packed: &[u8],
    len: usize,
    target: &mut Vec<u8>,
) -> Result<(), DecodeError> {
    if len > packed.len().saturating_mul(RATIO_MAX) {
        return Err(DecodeError::Field("uncompressed length"));
    }
    target.clear();
    target.try_reserve_exact(len).map_err(|error| DecodeError::Decompress(error.to_string()))?;
    target.resize(len, 0);
    // A slice: some codecs fill a vector up to its capacity.
    let target = target.as_mut_slice();
    let count = match codec {
        Compression::None if packed.len() == len => {
            target.copy_from_slice(packed);
            len
        }
        Compression::None => return Err(DecodeError::Field("uncompressed length")),
        #[cfg(feature = "lz4")]
        Compression::Lz4 => lz4_flex::block::decompress_into(packed, target).map_err(failed)?,
        #[cfg(feature = "zstd")]
        Compression::Zstd => zstd::bulk::decompress_to_buffer(packed, target).map_err(failed)?,
        #[cfg(feature = "snappy")]
        Compression::Snappy => {
            snap::raw::Decoder::new().decompress(packed, target).map_err(failed)?
        }
        #[allow(unreachable_patterns, reason = "every codec may be compiled in")]
        missing => return Err(absent(missing)),
    };
    if count == len { Ok(()) } else { Err(DecodeError::Field("uncompressed length")) }
}

#[allow(dead_code, reason = "every codec may be compiled in")]
fn absent(codec: Compression) -> DecodeError {
    DecodeError::Decompress(format!("this build has no {codec:?}"))
}

#[cfg(any(feature = "lz4", feature = "zstd", feature = "snappy"))]
#[allow(clippy::needless_pass_by_value, reason = "what map_err hands over")]
fn failed(error: impl std::fmt::Display) -> DecodeError {
    DecodeError::Decompress(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Compression; 4] =
        [Compression::None, Compression::Lz4, Compression::Zstd, Compression::Snappy];

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

    #[test]
    fn the_tightest_packing_is_unpacked_and_a_length_beyond_it_takes_no_memory() {
        let plain = vec![7; 3 << 20];
        for codec in ALL.into_iter().filter(|codec| codec_is_available(*codec)) {
            let mut packed = Buffer::default();
            compress(codec, &plain, &mut packed).unwrap();
            let mut back = Vec::new();
            decompress(codec, &packed, plain.len(), &mut back).unwrap();
            assert!(back == plain, "{codec:?}");
            let mut untouched = Vec::new();
            let beyond = packed.len() * RATIO_MAX + 1;
            assert!(decompress(codec, &packed, beyond, &mut untouched).is_err());
            assert_eq!(untouched.capacity(), 0, "{codec:?}");
        }
    }

    #[test]
    fn a_codec_that_is_not_compiled_in_says_so() {
        for codec in ALL.into_iter().filter(|codec| !codec_is_available(*codec)) {
            let refused = compress(codec, b"a", &mut Buffer::default());
            assert!(matches!(refused, Err(DecodeError::Decompress(_))), "{codec:?}");
            let refused = decompress(codec, b"a", 1, &mut Vec::new());
            assert!(matches!(refused, Err(DecodeError::Decompress(_))), "{codec:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked_and_only_to_its_own_length(
            plain in proptest::collection::vec(0u8..4, 0..2000)
        ) {
            for codec in ALL.into_iter().filter(|codec| codec_is_available(*codec)) {
                let mut packed = Buffer::default();
                compress(codec, &plain, &mut packed).unwrap();
                let mut back = Vec::new();
                decompress(codec, &packed, plain.len(), &mut back).unwrap();
                prop_assert_eq!(&back, &plain);
                for other in [plain.len() + 1, plain.len().saturating_sub(1), 0] {
                    let unpacked = decompress(codec, &packed, other, &mut back);
                    prop_assert_eq!(unpacked.is_ok(), other == plain.len(), "{:?}", codec);
                }
            }
        }

        #[test]
        fn any_bytes_are_unpacked_or_refused(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), len in 0usize..5000
        ) {
            let mut back = Vec::new();
            for codec in ALL {
                if decompress(codec, &bytes, len, &mut back).is_ok() {
                    prop_assert_eq!(back.len(), len);
                }
            }
        }
    }
}
