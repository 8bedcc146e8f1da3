//! Block scales of one byte: `base * 2^(-s/8)`, and the byte 255 for a scale of zero.
//!
//! Steps of an eighth of an octave are at most 4.4% away from any scale and reach 31 octaves below the
//! base; the blocks of a real delta differ by ten octaves and more.

/// The byte of a scale of zero.
pub const ZERO: u8 = 255;

/// `2^(-i/8)`, correctly rounded to f32. Literals, because `exp2` differs between platforms.
const FRACTION: [f32; 8] =
    [1.0, 0.917_004_05, 0.840_896_4, 0.771_105_4, 0.707_106_77, 0.648_419_8, 0.594_603_54, 0.545_253_9];

/// The scale of each byte, for one base.
pub type ScaleTable = [f32; 256];

/// Computes every scale of `base`.
pub fn scale_table(base: f32) -> ScaleTable {
    let mut table = [0.0; 256];
    for (s, scale) in table.iter_mut().enumerate().take(255) {
        // A power of two down to 2^-31 is exact.
        let octave = 1.0 / (1u64 << (s / 8)) as f32;
        *scale = base * FRACTION[s % 8] * octave;
    }
    table
}

/// The byte of the smallest scale above zero that is at least `magnitude`. A magnitude of zero gives
/// [`ZERO`].
#[inline(always)]
pub fn byte_at_least(table: &ScaleTable, magnitude: f32) -> u8 {
    if magnitude == 0.0 {
        return ZERO;
    }
    // Exponent and upper three bits of the mantissa are a binary logarithm in eighths that is at most one
    // off; comparisons with the table correct it. No branches: they would be mispredicted.
    let eighths = ((table[0] / magnitude).to_bits() >> 20) as i32 - (127 << 3);
    let s = eighths.clamp(0, 254) as usize;
    let s = s - usize::from(s > 0 && table[s] < magnitude);
    let s = s + usize::from(s < 254 && table[s + 1] >= magnitude);
    s as u8
}

/// The byte of the scale whose ratio to `magnitude` is nearest to 1.
#[inline(always)]
pub fn byte_nearest(table: &ScaleTable, magnitude: f32) -> u8 {
    let s = byte_at_least(table, magnitude);
    let closer = s < 254 && magnitude * magnitude < table[s as usize] * table[s as usize + 1];
    if closer { s + 1 } else { s }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_are_rounded_powers_of_two() {
        for (i, f) in FRACTION.iter().enumerate() {
            assert_eq!(*f, (-(i as f64) / 8.0).exp2() as f32);
        }
    }

    #[test]
    fn a_byte_names_the_smallest_scale_that_covers() {
        let table = scale_table(3.0);
        for i in 1..2000 {
            let magnitude = 3.0 * i as f32 / 2000.0;
            let s = byte_at_least(&table, magnitude) as usize;
            assert!(table[s] >= magnitude && (s == 254 || table[s + 1] < magnitude));
        }
        assert_eq!(byte_at_least(&table, 0.0), ZERO);
        assert_eq!(byte_at_least(&table, f32::MIN_POSITIVE), 254);
    }
}
