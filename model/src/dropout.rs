//! Dropout masks that all backends share, so that their gradients can be compared.

/// The seed of one step's masks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MaskSeed {
    /// Seed of the round.
    pub(crate) seed: u64,
    /// Steps since the round began.
    pub(crate) step: u64,
    /// Number in the step's batch of the first sample of a pass: a large batch goes through in pieces.
    pub(crate) first: u64,
}

impl MaskSeed {
    /// The mask of layer `layer`, which drops values with probability `p`; a sample has `len` values there.
    pub(crate) fn mask(self, p: f32, layer: usize, len: usize) -> Mask {
        Mask {
            first: self.first.wrapping_mul(len as u64),
            state: self.seed ^ mix(self.step.wrapping_mul(0xA24B_AED4_963E_E407) ^ (layer as u64)),
            threshold: (f64::from(p) * 2f64.powi(32)) as u64,
            keep: 1.0 / (1.0 - p),
        }
    }
}

/// The mask of one dropout layer in one step: `0` (with probability `p`) or `1 / (1 - p)`.
///
/// A factor depends only on [`MaskSeed`], the layer, and the position in the batch, samples outermost
/// and channels first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mask {
    first: u64,
    state: u64,
    threshold: u64,
    keep: f32,
}

impl Mask {
    /// The factor of the pass's value at `index`.
    #[inline(always)]
    pub(crate) fn at(&self, index: usize) -> f32 {
        let place = self.first.wrapping_add(index as u64 + 1);
        let draw = mix(self.state.wrapping_add(place.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        if draw >> 32 < self.threshold { 0.0 } else { self.keep }
    }
}

/// The output function of SplitMix64 (Steele, Lea and Flood 2014).
#[inline(always)]
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_drops_the_asked_share_and_keeps_the_mean() {
        let mask = MaskSeed { seed: 1, step: 2, first: 0 }.mask(0.3, 3, 1);
        let values: Vec<f32> = (0..100_000).map(|index| mask.at(index)).collect();
        let dropped = values.iter().filter(|v| **v == 0.0).count() as f64 / 1e5;
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / 1e5;
        assert!((dropped - 0.3).abs() < 0.01, "{dropped}");
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
    }

    #[test]
    fn a_piece_of_a_batch_has_its_part_of_the_mask() {
        let whole = MaskSeed { seed: 1, step: 2, first: 0 }.mask(0.5, 3, 4);
        let piece = MaskSeed { seed: 1, step: 2, first: 5 }.mask(0.5, 3, 4);
        assert!((0..64).all(|index| piece.at(index) == whole.at(20 + index)));
    }

    #[test]
    fn rounds_steps_and_layers_have_masks_of_their_own() {
        let mask = |seed, step, layer| -> Vec<f32> {
            let mask = MaskSeed { seed, step, first: 0 }.mask(0.5, layer, 1);
            (0..64).map(|index| mask.at(index)).collect()
        };
        let first = mask(9, 1, 1);
        assert_eq!(first, mask(9, 1, 1));
        for (seed, step, layer) in [(8, 1, 1), (9, 2, 1), (9, 1, 2)] {
            assert_ne!(first, mask(seed, step, layer), "{seed} {step} {layer}");
        }
    }
}
