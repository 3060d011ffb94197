//! A hash for numbers that the store itself gives out.

use std::hash::{BuildHasherDefault, Hasher};

/// Builds hashers that spread the bits of ids. Ids are given out by the store, so nobody picks them to collide.
pub(crate) type Mix = BuildHasherDefault<Mixed>;

#[derive(Debug, Default)]
pub(crate) struct Mixed(u64);

impl Hasher for Mixed {
    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    #[inline]
    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }

    #[inline]
    fn write_u64(&mut self, value: u64) {
        let bits = (self.0 ^ value).wrapping_add(0x9e37_79b9_7f4a_7c15);
        let bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.0 = bits ^ bits >> 31;
    }
}
