//! Codes of 1 to 8 bits, packed without padding, least significant bit first.

use crate::limits::CHUNK;

/// Size of `count` codes of `bits` bits, in bytes.
pub fn packed_len(count: usize, bits: u8) -> usize {
    (count * bits as usize).div_ceil(8)
}

/// Packs `codes` into `out`, which has the size that [`packed_len`] gives.
#[inline(always)]
pub fn pack(codes: &[u8], bits: u8, out: &mut [u8]) {
    if bits == 8 {
        return out.copy_from_slice(codes);
    }
    let (groups, rest) = codes.as_chunks::<8>();
    let own = bits as usize;
    let mut target = out;
    for group in groups {
        let word = pack_group(*group, bits).to_le_bytes();
        // Stores eight bytes, of which the group owns the first `bits`: the next group overwrites the rest.
        match target.split_first_chunk_mut::<8>() {
            Some((first, _)) => *first = word,
            None => target[..own].copy_from_slice(&word[..own]),
        }
        target = &mut target[own..];
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let word = pack_group(last, bits).to_le_bytes();
    target.copy_from_slice(&word[..target.len()]);
}

/// Packs eight codes of `bits` bits into the low bits of a word.
#[inline(always)]
fn pack_group(codes: [u8; 8], bits: u8) -> u64 {
    let bits = u32::from(bits);
    let word = u64::from_le_bytes(codes);
    // Merges pairs of `width`-bit fields, one at the bottom of each `lane` bits.
    let merge = |word: u64, lane: u32, width: u32, ones: u64| {
        let low = ones.wrapping_mul((1u64 << width) - 1);
        (word & low) | ((word >> (lane - width)) & (low << width))
    };
    let word = merge(word, 8, bits, 0x0001_0001_0001_0001);
    let word = merge(word, 16, 2 * bits, 0x0000_0001_0000_0001);
    merge(word, 32, 4 * bits, 1)
}

/// Unpacks `codes.len()` codes from the start of `packed`; missing bytes read as zero.
pub fn unpack(packed: &[u8], bits: u8, codes: &mut [u8]) {
    let mask = (1u64 << bits) - 1;
    for (group, bytes) in codes.chunks_mut(8).zip(packed.chunks(bits as usize)) {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        let word = u64::from_le_bytes(word);
        for (i, code) in group.iter_mut().enumerate() {
            *code = (word >> (i * bits as usize) & mask) as u8;
        }
    }
}

/// Maps packed codes to levels, a chunk at a time.
///
/// For widths that divide a byte, a table of 256 rows maps each byte to the levels of all its codes.
#[derive(Debug)]
pub enum LevelLookup<'t> {
    /// A byte holds eight codes.
    One(Box<[[f32; 8]; 256]>),
    /// A byte holds four codes.
    Two(Box<[[f32; 4]; 256]>),
    /// A byte holds two codes.
    Four(Box<[[f32; 2]; 256]>),
    /// Any other width: unpack, then look up.
    Any(&'t [f32], u8),
}

impl<'t> LevelLookup<'t> {
    /// Prepares to look up `count` codes.
    pub fn new(levels: &'t [f32], bits: u8, count: usize) -> Self {
        // On short tensors building the table costs more than it saves.
        match bits {
            _ if count < CHUNK => Self::Any(levels, bits),
            1 => Self::One(byte_table(levels, bits)),
            2 => Self::Two(byte_table(levels, bits)),
            4 => Self::Four(byte_table(levels, bits)),
            _ => Self::Any(levels, bits),
        }
    }

    /// Fills `out` with the levels of the first codes in `packed`.
    #[inline(always)]
    pub fn expand(&self, packed: &[u8], out: &mut [f32]) {
        match self {
            Self::One(table) => expand_bytes(table, packed, out),
            Self::Two(table) => expand_bytes(table, packed, out),
            Self::Four(table) => expand_bytes(table, packed, out),
            Self::Any(levels, 8) => {
                for (value, &code) in out.iter_mut().zip(packed) {
                    *value = levels[code as usize & (levels.len() - 1)];
                }
            }
            Self::Any(levels, bits) => {
                let mut codes = [0; CHUNK];
                let codes = &mut codes[..out.len().min(CHUNK)];
                unpack(packed, *bits, codes);
                for (value, &code) in out.iter_mut().zip(codes.iter()) {
                    *value = levels[code as usize & (levels.len() - 1)];
                }
            }
        }
    }
}

fn byte_table<const N: usize>(levels: &[f32], bits: u8) -> Box<[[f32; N]; 256]> {
    let mask = (1usize << bits) - 1;
    let mut table = Box::new([[0.0; N]; 256]);
    for (byte, row) in table.iter_mut().enumerate() {
        for (i, value) in row.iter_mut().enumerate() {
            *value = levels[byte >> (i * bits as usize) & mask];
        }
    }
    table
}

#[inline(always)]
fn expand_bytes<const N: usize>(table: &[[f32; N]; 256], packed: &[u8], out: &mut [f32]) {
    let (groups, rest) = out.as_chunks_mut::<N>();
    let full = groups.len();
    for (group, &byte) in groups.iter_mut().zip(packed) {
        *group = table[byte as usize];
    }
    if let Some(&byte) = packed.get(full) {
        rest.copy_from_slice(&table[byte as usize][..rest.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_and_length_comes_back() {
        for bits in 1..=8u8 {
            for count in (0..40).chain([1023, 1024]) {
                let codes: Vec<u8> =
                    (0..count).map(|i| (i * 37 + i / 3) as u8 & ((1u16 << bits) - 1) as u8).collect();
                let mut packed = vec![0; packed_len(count, bits)];
                pack(&codes, bits, &mut packed);
                let mut back = vec![0; count];
                unpack(&packed, bits, &mut back);
                assert_eq!(codes, back, "{bits} bits, {count} codes");
                let levels: Vec<f32> = (0..1 << bits).map(|v| v as f32).collect();
                let mut values = vec![0.0; count];
                LevelLookup::new(&levels, bits, CHUNK).expand(&packed, &mut values);
                assert!(values.iter().zip(&codes).all(|(v, c)| *v == f32::from(*c)));
            }
        }
    }
}
