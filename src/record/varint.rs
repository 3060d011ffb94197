//! Integers in as few bytes as they need: LEB128, and zigzag for signed ones.

use super::buffer::Buffer;

/// Appends `value`, seven bits a byte, the lowest first.
#[inline]
pub(crate) fn put_u64(target: &mut Buffer, mut value: u64) {
    while value >= 0x80 {
        target.put(&[low_byte(value) | 0x80]);
        value >>= 7;
    }
    target.put(&[low_byte(value)]);
}

/// Numbers below this take at most two bytes.
pub(crate) const SHORT: u64 = 1 << 14;

/// Up to four numbers below [`SHORT`], one behind the other.
#[derive(Clone, Copy, Default)]
pub(crate) struct Shorts {
    bytes: u64,
    bits: u32,
}

impl Shorts {
    /// What a store takes, of which the last bytes may mean nothing.
    pub(crate) const WIDTH: usize = size_of::<u64>();

    #[inline]
    pub(crate) fn then(self, value: u64) -> Self {
        let two = u64::from(value >= 0x80);
        let bytes = (value & 0x7f) | two << 7 | value >> 7 << 8;
        Self {
            bytes: self.bytes | bytes << self.bits,
            bits: self.bits + 8 + 8 * u32::from(two == 1),
        }
    }

    #[inline]
    pub(crate) fn len(self) -> usize {
        self.bits as usize / 8
    }

    /// Numbers below 128, each of which takes a byte.
    #[inline]
    pub(crate) fn bytes<const COUNT: usize>(numbers: [u64; COUNT]) -> Self {
        let bytes = numbers.iter().rev().fold(0, |bytes, number| bytes << 8 | number);
        Self { bytes, bits: 8 * u32::try_from(COUNT).expect("four at most") }
    }

    /// With those of `other` behind them; four in all.
    #[inline]
    pub(crate) fn and(self, other: Self) -> Self {
        Self { bytes: self.bytes | other.bytes << self.bits, bits: self.bits + other.bits }
    }

    /// Stores them all at once, so that nothing is asked of each byte: [`Shorts::WIDTH`] bytes, whose end is of no
    /// meaning.
    #[inline]
    pub(crate) fn store(self, target: &mut [u8], at: usize) {
        target[at..][..Self::WIDTH].copy_from_slice(&self.bytes.to_le_bytes());
    }
}

/// Appends `value`, small absolute values first.
#[inline]
pub(crate) fn put_i64(target: &mut Buffer, value: i64) {
    put_u64(target, zigzag(value));
}

/// Bytes that [`put_u64`] takes.
#[inline]
pub(crate) fn len_u64(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Bytes that [`put_i64`] takes.
#[inline]
pub(crate) fn len_i64(value: i64) -> usize {
    len_u64(zigzag(value))
}

/// The number that `bytes` begin with, and what follows it. `None` if the bytes end, if it outgrows 64 bits,
/// or if it is written longer than it need be.
#[inline]
pub(crate) fn split_u64(bytes: &[u8]) -> Option<(u64, &[u8])> {
    match bytes {
        [first, rest @ ..] if *first < 0x80 => Some(((*first).into(), rest)),
        [first, second @ 1..0x80, rest @ ..] => {
            Some((u64::from(*first & 0x7f) | u64::from(*second) << 7, rest))
        }
        _ => split_long(bytes),
    }
}

fn split_long(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (shift, (at, byte)) in (0..64).step_by(7).zip(bytes.iter().enumerate()) {
        if shift == 63 && *byte > 1 {
            return None;
        }
        value |= u64::from(*byte & 0x7f) << shift;
        if *byte < 0x80 {
            return (*byte != 0 || at == 0).then_some((value, &bytes[at + 1..]));
        }
    }
    None
}

/// As [`split_u64`], for [`put_i64`].
#[inline]
pub(crate) fn split_i64(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let (raw, rest) = split_u64(bytes)?;
    Some((unzigzag(raw), rest))
}

/// The signed number behind an unsigned one that was read.
#[inline]
pub(crate) fn unzigzag(raw: u64) -> i64 {
    (raw >> 1).cast_signed() ^ -(raw & 1).cast_signed()
}

#[inline]
pub(crate) fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63).cast_unsigned()
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the lowest byte is what is asked for")]
fn low_byte(value: u64) -> u8 {
    value as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn get_u64(bytes: &[u8], at: &mut usize) -> Option<u64> {
        let (value, rest) = split_u64(bytes.get(*at..)?)?;
        *at = bytes.len() - rest.len();
        Some(value)
    }

    #[test]
    fn every_length_begins_where_its_bits_do() {
        for bits in 0..64 {
            let value = 1u64 << bits;
            for value in [value - 1, value, value + (value - 1)] {
                let mut bytes = Buffer::default();
                put_u64(&mut bytes, value);
                assert_eq!(bytes.len(), len_u64(value), "{value}");
                assert_eq!(get_u64(&bytes, &mut 0), Some(value));
                assert_eq!(get_u64(&bytes[..bytes.len() - 1], &mut 0), None, "{value}, cut");
            }
        }
        assert_eq!([len_u64(0x7f), len_u64(0x80), len_u64(u64::MAX)], [1, 2, 10]);
    }

    #[test]
    fn every_three_bytes_are_read_as_the_definition_says() {
        for raw in 0u32..1 << 24 {
            let bytes = &raw.to_le_bytes()[..3];
            let count = bytes.iter().position(|byte| *byte < 0x80).map_or(4, |at| at + 1);
            let sum = bytes
                .iter()
                .take(count)
                .rev()
                .fold(0, |sum, byte| sum << 7 | u64::from(byte & 0x7f));
            let canonical = count <= 3 && (count == 1 || bytes[count - 1] != 0);
            assert_eq!(get_u64(bytes, &mut 0), canonical.then_some(sum), "{bytes:?}");
        }
    }

    #[test]
    fn more_than_64_bits_are_refused() {
        let mut largest = [0xff; 11];
        largest[9] = 1;
        let mut at = 0;
        assert_eq!(get_u64(&largest, &mut at), Some(u64::MAX));
        assert_eq!(at, 10);
        for tenth in 2..=0xff {
            largest[9] = tenth;
            assert_eq!(get_u64(&largest, &mut 0), None, "tenth byte {tenth}");
        }
        assert_eq!(get_u64(&[1], &mut 5), None, "behind the bytes");
    }

    #[test]
    fn signed_numbers_are_short_near_zero_on_both_sides() {
        for (value, len) in [(0, 1), (-1, 1), (63, 1), (-64, 1), (64, 2), (-65, 2), (i64::MIN, 10)]
        {
            assert_eq!(len_i64(value), len, "{value}");
        }
    }

    proptest! {
        #[test]
        fn every_number_comes_back_and_takes_the_bytes_it_said(value: u64, shift in 0u32..64) {
            for value in [value, value >> shift] {
                let mut bytes = Buffer::default();
                put_u64(&mut bytes, value);
                prop_assert_eq!(bytes.len(), len_u64(value));
                let mut at = 0;
                prop_assert_eq!(get_u64(&bytes, &mut at), Some(value));
                prop_assert_eq!(at, bytes.len());
                let signed = value.cast_signed();
                bytes.clear();
                put_i64(&mut bytes, signed);
                prop_assert_eq!(bytes.len(), len_i64(signed));
                prop_assert_eq!(split_i64(&bytes), Some((signed, &[][..])));
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused_and_only_one_way_of_writing_is_read(
            bytes in proptest::collection::vec(any::<u8>(), 0..12)
        ) {
            let mut at = 0;
            if let Some(value) = get_u64(&bytes, &mut at) {
                let mut again = Buffer::default();
                put_u64(&mut again, value);
                prop_assert_eq!(&again[..], &bytes[..at]);
            }
        }
    }
}
