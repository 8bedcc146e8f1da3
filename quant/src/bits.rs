//! Codes of 1 to 8 bits, packed without gaps, least significant bit first.

use crate::limits::CHUNK;

/// Bytes that `count` codes of `bits` bits take.
pub fn packed_len(count: usize, bits: u8) -> usize {
    (count * bits as usize).div_ceil(8)
}

/// Appends `codes`, packed.
pub fn pack(codes: &[u8], bits: u8, out: &mut Vec<u8>) {
    match bits {
        8 => out.extend_from_slice(codes),
        4 => {
            let (pairs, rest) = codes.as_chunks::<2>();
            out.extend(pairs.iter().map(|[low, high]| low | high << 4));
            out.extend(rest);
        }
        _ => {
            let (groups, rest) = codes.as_chunks::<8>();
            for group in groups {
                out.extend_from_slice(&pack_group(group, bits).to_le_bytes()[..bits as usize]);
            }
            if !rest.is_empty() {
                let mut group = [0; 8];
                group[..rest.len()].copy_from_slice(rest);
                let bytes = pack_group(&group, bits).to_le_bytes();
                out.extend_from_slice(&bytes[..packed_len(rest.len(), bits)]);
            }
        }
    }
}

fn pack_group(codes: &[u8; 8], bits: u8) -> u64 {
    codes.iter().rev().fold(0, |word, &code| word << bits | u64::from(code))
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

/// Looks packed codes up in a table of levels, a chunk at a time.
///
/// For the widths that divide a byte, one load gives the levels of a whole byte of codes.
#[derive(Debug)]
pub enum Lookup<'t> {
    /// A byte holds eight codes.
    One(Box<[[f32; 8]; 256]>),
    /// A byte holds four codes.
    Two(Box<[[f32; 4]; 256]>),
    /// A byte holds two codes.
    Four(Box<[[f32; 2]; 256]>),
    /// Any other width: unpack, then look up.
    Any(&'t [f32], u8),
}

impl<'t> Lookup<'t> {
    /// Prepares the table for `count` codes.
    pub fn new(levels: &'t [f32], bits: u8, count: usize) -> Self {
        // Building the table costs more than it saves on short tensors.
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
                let mut packed = Vec::new();
                pack(&codes, bits, &mut packed);
                assert_eq!(packed.len(), packed_len(count, bits));
                let mut back = vec![0; count];
                unpack(&packed, bits, &mut back);
                assert_eq!(codes, back, "{bits} bits, {count} codes");
                let levels: Vec<f32> = (0..1 << bits).map(|v| v as f32).collect();
                let mut values = vec![0.0; count];
                Lookup::new(&levels, bits, CHUNK).expand(&packed, &mut values);
                assert!(values.iter().zip(&codes).all(|(v, c)| *v == f32::from(*c)));
            }
        }
    }
}
