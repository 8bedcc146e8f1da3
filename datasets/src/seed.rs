//! Random generators seeded by settings alone.

use rand::{SeedableRng, rngs::ChaCha8Rng};

/// What a generator is used for: two purposes never share random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// Dividing a data set.
    Partition = 1,
    /// Choosing the batches of a round.
    Batches = 2,
    /// Stochastic rounding of a round's update.
    Rounding = 3,
    /// Jitter of waiting times.
    Jitter = 4,
    /// Amount of local work of a virtual client in a round.
    Work = 5,
    /// Speed and bandwidth of a virtual client.
    Hardware = 6,
    /// Whether a virtual client vanishes in a round.
    Dropout = 7,
    /// Masks of the dropout layers in a round.
    Masks = 8,
    /// Which samples of a client are held out of its training.
    LocalTest = 9,
}

/// The generator of `(seed, name, round)` for one purpose.
///
/// The four values occupy separate bytes of the key, so different inputs give unrelated generators
/// (except for names that collide under 64-bit FNV-1a).
pub fn seeded_rng(seed: u64, name: &str, round: u64, purpose: Purpose) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    let words = [seed, fnv1a(name.as_bytes()), round, purpose as u64];
    for (bytes, word) in key.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    ChaCha8Rng::from_seed(key)
}

/// 64-bit FNV-1a (Fowler, Noll, Vo): stable over platforms and versions, unlike the standard hasher.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngExt;

    #[test]
    fn each_input_matters_and_nothing_else_does() {
        let first = |seed, name, round, purpose| seeded_rng(seed, name, round, purpose).random::<u64>();
        let base = first(1, "a", 2, Purpose::Batches);
        assert_eq!(base, first(1, "a", 2, Purpose::Batches));
        assert_ne!(base, first(2, "a", 2, Purpose::Batches));
        assert_ne!(base, first(1, "b", 2, Purpose::Batches));
        assert_ne!(base, first(1, "a", 3, Purpose::Batches));
        assert_ne!(base, first(1, "a", 2, Purpose::Rounding));
    }

    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
