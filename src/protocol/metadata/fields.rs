//! The fields of a metadata record: numbers little-endian, texts and lists behind a u32 count.
//!
//! Pure: bytes in, values or [`DecodeError`] out; nothing is allocated for a length that the bytes do not have.

use crate::config::TopicConfig;
use crate::error::DecodeError;
use crate::types::{DiskId, Offset};

pub(super) struct Target<'a> {
    pub(super) bytes: &'a mut Vec<u8>,
}

impl Target<'_> {
    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub(super) fn u8(&mut self, value: u8) -> &mut Self {
        self.put(&[value])
    }

    pub(super) fn u16(&mut self, value: u16) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    pub(super) fn u64(&mut self, value: u64) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    pub(super) fn u128(&mut self, value: u128) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    fn count(&mut self, count: usize) -> &mut Self {
        self.u32(u32::try_from(count).expect("a list of far fewer than 2^32"))
    }

    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.count(text.len()).put(text.as_bytes())
    }

    pub(super) fn config(&mut self, config: &TopicConfig) -> &mut Self {
        let mut bytes = Vec::new();
        config.encode(&mut bytes);
        self.count(bytes.len()).put(&bytes)
    }

    pub(super) fn disks(&mut self, disks: &[DiskId]) -> &mut Self {
        self.count(disks.len());
        for disk in disks {
            self.u16(disk.0);
        }
        self
    }

    pub(super) fn replicas(&mut self, replicas: &[Vec<DiskId>]) -> &mut Self {
        self.count(replicas.len());
        for disks in replicas {
            self.disks(disks);
        }
        self
    }
}

pub(super) struct Fields<'a> {
    pub(super) bytes: &'a [u8],
}

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let Some((taken, rest)) = self.bytes.split_at_checked(len) else {
            return Err(DecodeError::Short { have: self.bytes.len() as u64, need: len as u64 });
        };
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        Ok(self.take(N)?.try_into().expect("that many bytes were taken"))
    }

    pub(super) fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn flag(&mut self) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Field("flag")),
        }
    }

    pub(super) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn u128(&mut self) -> Result<u128, DecodeError> {
        self.array().map(u128::from_le_bytes)
    }

    pub(super) fn offset(&mut self) -> Result<Offset, DecodeError> {
        let offset = Offset(self.u64()?);
        if offset <= Offset::MAX { Ok(offset) } else { Err(DecodeError::Field("offset")) }
    }

    fn sized(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.u32()? as usize;
        self.take(len)
    }

    pub(super) fn text(&mut self) -> Result<String, DecodeError> {
        let bytes = self.sized()?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| DecodeError::Field("text"))
    }

    pub(super) fn config(&mut self) -> Result<TopicConfig, DecodeError> {
        TopicConfig::decode(self.sized()?)
    }

    pub(super) fn disks(&mut self) -> Result<Vec<DiskId>, DecodeError> {
        let count = self.u32()? as usize;
        let bytes = self.take(count.checked_mul(2).ok_or(DecodeError::Field("count"))?)?;
        Ok(bytes
            .chunks_exact(2)
            .map(|pair| DiskId(u16::from_le_bytes([pair[0], pair[1]])))
            .collect())
    }

    pub(super) fn replicas(&mut self) -> Result<Vec<Vec<DiskId>>, DecodeError> {
        let count = self.u32()?;
        (0..count).map(|_| self.disks()).collect()
    }
}
