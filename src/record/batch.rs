//! A whole batch as it lies in a log: header and payload, checked.

use std::borrow::Cow;

use crate::error::DecodeError;
use crate::types::Compression;

use super::compression;
use super::header::{ALIGNMENT, BatchHeader, HEADER_BYTES, crc};
use super::view::{BatchRecords, validate};

/// Decompressed payloads are bounded by this whatever a header says.
const PAYLOAD_BYTES_MAX: usize = 1 << 30;

/// A batch whose header fits its place; the payload is checked by [`Batch::check`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batch<'a> {
    pub(crate) header: BatchHeader,
    payload: &'a [u8],
}

impl<'a> Batch<'a> {
    /// Reads the batch at the start of `bytes`.
    ///
    /// # Errors
    /// What [`BatchHeader::decode`] says, and [`DecodeError::Short`] if the payload is cut.
    #[inline]
    pub(crate) fn decode(bytes: &'a [u8], seed: u32) -> Result<Self, DecodeError> {
        let header = BatchHeader::decode(bytes, seed)?;
        let Some(payload) = bytes.get(HEADER_BYTES..header.len()) else {
            return Err(DecodeError::Short {
                have: bytes.len() as u64,
                need: header.length.into(),
            });
        };
        Ok(Self { header, payload })
    }

    /// The batch at the start of bytes that were checked before; `None` at their end.
    #[inline]
    pub(crate) fn trusted(bytes: &'a [u8]) -> Option<Self> {
        let header = BatchHeader::trusted(bytes)?;
        let payload = bytes.get(HEADER_BYTES..header.len())?;
        if payload.len() < header.padding.into() {
            return None;
        }
        Some(Self { header, payload })
    }

    /// Checks that the payload is what was written.
    ///
    /// # Errors
    /// [`DecodeError::Checksum`].
    #[inline]
    pub(crate) fn check(&self) -> Result<(), DecodeError> {
        if crc(0, self.payload) != self.header.records_crc {
            return Err(DecodeError::Checksum("records"));
        }
        Ok(())
    }

    /// The encoded records: in place, or decompressed. Every record in it decodes.
    ///
    /// # Errors
    /// [`DecodeError::Decompress`], or [`DecodeError::Field`] when the records do not fit the header.
    #[inline]
    pub(crate) fn records(&self) -> Result<Cow<'a, [u8]>, DecodeError> {
        let end = self.payload.len() - usize::from(self.header.padding);
        let packed = &self.payload[..end];
        let records = match self.header.compression {
            Compression::None => Cow::Borrowed(packed),
            codec => Cow::Owned(unpack(codec, packed)?),
        };
        validate(&self.header, &records)?;
        Ok(records)
    }

    /// The records of an uncompressed batch that [`Batch::records`] has validated.
    #[inline]
    pub(crate) fn validated_records(&self) -> BatchRecords<'a> {
        let end = self.payload.len() - usize::from(self.header.padding);
        BatchRecords::new(&self.header, &self.payload[..end])
    }
}

fn unpack(codec: Compression, packed: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let Some((len, packed)) = packed.split_first_chunk::<4>() else {
        return Err(DecodeError::Short { have: packed.len() as u64, need: 4 });
    };
    let len = u32::from_le_bytes(*len) as usize;
    if len > PAYLOAD_BYTES_MAX {
        return Err(DecodeError::Field("uncompressed length"));
    }
    let mut records = Vec::new();
    compression::decompress(codec, packed, len, &mut records)?;
    Ok(records)
}

/// The first place at or behind `from` (a multiple of 4) where an intact header stands.
pub(crate) fn find_header(bytes: &[u8], from: usize, seed: u32) -> Option<(usize, BatchHeader)> {
    let mut at = from.next_multiple_of(ALIGNMENT);
    while at + HEADER_BYTES <= bytes.len() {
        // A length is checked first: it is cheap and rules out nearly every place.
        let length = u32::from_le_bytes(*bytes[at + 4..].first_chunk().expect("within the bytes"));
        if length >= 80
            && length.is_multiple_of(4)
            && let Ok(header) = BatchHeader::decode(&bytes[at..], seed)
        {
            return Some((at, header));
        }
        at += ALIGNMENT;
    }
    None
}
