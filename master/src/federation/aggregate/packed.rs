//! Adds packed codes to a sum without decoding them: a block has sixteen different terms, and each is
//! computed once.

use super::fixed_point::{MAGIC, narrow};
use fl_quant::Codes;
use pulp::Arch;

/// Adds the terms of `codes`, as many as `sums`. Every one is [`narrow`] of the decoded value.
pub(super) fn add(arch: Arch, sums: &mut [i64], codes: &Codes<'_>, scale: f64) {
    match arch {
        #[cfg(target_arch = "x86_64")]
        Arch::V4(simd) => avx512::add(simd, sums, codes, scale),
        arch => arch.dispatch(|| add_portable(sums, codes, scale)),
    }
}

#[inline(always)]
fn add_portable(sums: &mut [i64], codes: &Codes<'_>, scale: f64) {
    let mut blocks = sums.chunks_mut(codes.block());
    let centre = codes.centre();
    codes.for_each_block(|factor, packed| {
        let terms = codes.levels().map(|level| narrow(level * factor + centre, scale));
        add_terms(blocks.next().unwrap_or_default(), packed, &terms);
    });
}

/// Adds the terms that the codes name.
#[inline(always)]
fn add_terms(sums: &mut [i64], packed: &[u8], terms: &[i64; 16]) {
    let (pairs, last) = sums.as_chunks_mut::<2>();
    for ([first, second], byte) in pairs.iter_mut().zip(packed) {
        *first = first.wrapping_add(terms[usize::from(byte & 15)]);
        *second = second.wrapping_add(terms[usize::from(byte >> 4)]);
    }
    if let ([last], Some(byte)) = (last, packed.last()) {
        *last = last.wrapping_add(terms[usize::from(byte & 15)]);
    }
}

/// With AVX-512, sixteen terms are two registers, and one instruction looks eight codes up in them.
#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{Codes, MAGIC, add_terms};
    use pulp::{Simd, WithSimd, cast, x86::V4};
    use std::arch::x86_64::{__m256, __m512i};

    pub(super) fn add(simd: V4, sums: &mut [i64], codes: &Codes<'_>, scale: f64) {
        Simd::vectorize(simd, Add { simd, sums, codes, scale });
    }

    /// Bits by which the word of sixteen codes is shifted for each of them.
    const FIRST: [i64; 8] = [0, 4, 8, 12, 16, 20, 24, 28];
    const SECOND: [i64; 8] = [32, 36, 40, 44, 48, 52, 56, 60];

    struct Add<'a> {
        simd: V4,
        sums: &'a mut [i64],
        codes: &'a Codes<'a>,
        scale: f64,
    }

    impl WithSimd for Add<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) {
            let Self { simd, sums, codes, scale } = self;
            let mut blocks = sums.chunks_mut(codes.block());
            let [low, high]: [__m256; 2] = cast(*codes.levels());
            let centre = codes.centre();
            codes.for_each_block(
                #[inline(always)]
                |factor, packed| {
                    // Not by `map`: what is not inlined is compiled without these instructions.
                    let low = terms(simd, low, factor, centre, scale);
                    let high = terms(simd, high, factor, centre, scale);
                    add_block(simd, blocks.next().unwrap_or_default(), packed, low, high);
                },
            );
        }
    }

    /// The terms of eight levels, by the same operations as [`super::narrow`].
    #[inline(always)]
    fn terms(simd: V4, levels: __m256, factor: f32, centre: f32, scale: f64) -> __m512i {
        let (avx, wide) = (simd.avx, simd.avx512f);
        let values = avx._mm256_mul_ps(levels, avx._mm256_set1_ps(factor));
        let values = avx._mm256_add_ps(values, avx._mm256_set1_ps(centre));
        let scaled = wide._mm512_mul_pd(wide._mm512_cvtps_pd(values), wide._mm512_set1_pd(scale));
        let magic = wide._mm512_add_pd(scaled, wide._mm512_set1_pd(MAGIC));
        wide._mm512_sub_epi64(cast(magic), wide._mm512_set1_epi64(MAGIC.to_bits() as i64))
    }

    #[inline(always)]
    fn add_block(simd: V4, sums: &mut [i64], packed: &[u8], low: __m512i, high: __m512i) {
        let wide = simd.avx512f;
        let first: __m512i = cast(FIRST);
        let second: __m512i = cast(SECOND);
        let (groups, rest) = sums.as_chunks_mut::<16>();
        // Fifteen codes that are left over fill eight bytes too: they are no whole word.
        let (words, rest_packed) = packed.split_at(packed.len().min(8 * groups.len()));
        let (words, _) = words.as_chunks::<8>();
        // Not by `zip`: its calls are not inlined here, and cost as much as a block does.
        let mut index = 0;
        while index < groups.len().min(words.len()) {
            let group = &mut groups[index];
            let word = wide._mm512_set1_epi64(i64::from_le_bytes(words[index]));
            // The look-up takes the lowest four bits of an index: no mask is needed.
            let [low_sums, high_sums]: [[i64; 8]; 2] = cast(*group);
            let terms = wide._mm512_permutex2var_epi64(low, wide._mm512_srlv_epi64(word, first), high);
            let low_sums = wide._mm512_add_epi64(cast(low_sums), terms);
            let terms = wide._mm512_permutex2var_epi64(low, wide._mm512_srlv_epi64(word, second), high);
            let high_sums = wide._mm512_add_epi64(cast(high_sums), terms);
            *group = cast([low_sums, high_sums]);
            index += 1;
        }
        if !rest.is_empty() {
            let terms: [[i64; 8]; 2] = [cast(low), cast(high)];
            let terms: [i64; 16] = std::array::from_fn(|i| terms[i / 8][i % 8]);
            add_terms(rest, rest_packed, &terms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ExactSum;
    use super::*;
    use fl_quant::{Encoder, Piece, Scheme, Spec, Stream, encode_update};

    const SCHEMES: [Scheme; 4] = [Scheme::StocQ, Scheme::MsqV2, Scheme::Sdq, Scheme::BetaQ];

    fn packed(scheme: Scheme, x: &[f32]) -> Vec<u8> {
        let spec = Spec { entropy: false, ..Spec::new(scheme, 4) };
        let mut streams = Vec::new();
        encode_update(&mut Encoder::default(), x, &[vec![x.len()]], &spec, &mut streams).unwrap();
        streams.remove(0)
    }

    fn wave(len: usize) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * 0.37).sin().powi(5) * 0.03).collect()
    }

    /// Every scheme and many lengths and places: the sum is that of the decoded values, to the bit.
    #[test]
    fn codes_add_up_as_their_values_do() {
        for scheme in SCHEMES {
            for (len, at) in [
                (15, 0),
                (17, 0),
                (31, 4088),
                (64, 1),
                (79, 2),
                (1000, 4090),
                (4096, 4095),
                (5001, 77),
                (20_000, 3),
            ] {
                let bytes = packed(scheme, &wave(len));
                let stream = Stream::parse(&bytes, len).unwrap();
                let mut values = vec![0.0; len];
                stream.decode_into(&mut values);
                // The last two are beyond what packed codes and then words are added with.
                for weight in [1.0, 600.0, 1e7, 1e9, 1e13] {
                    let sums = [ExactSum::new(at + len), ExactSum::new(at + len)];
                    for _ in 0..3 {
                        sums[0]
                            .add(weight, stream.max_abs(), |f| {
                                stream.for_each_piece(|offset, piece| f(at + offset, piece));
                            })
                            .unwrap();
                        sums[1].add(weight, stream.max_abs(), |f| f(at, Piece::Values(&values))).unwrap();
                    }
                    let [coded, plain] = sums.map(|sum| {
                        let mut out = Vec::new();
                        sum.for_each(|_, v| out.push(v));
                        out
                    });
                    assert_eq!(coded, plain, "{scheme}, {len} elements at {at}, weight {weight}");
                }
            }
        }
    }

    /// The widest instructions of this machine, the portable loop and the values one by one give the same
    /// integers; where the machine has AVX-512 that compares its path with the portable one.
    #[test]
    fn every_path_gives_the_same_integers() {
        let scale = 600.0 * super::super::fixed_point::ONE;
        let mut compared = 0;
        for scheme in SCHEMES {
            for len in [1, 15, 16, 17, 63, 64, 65, 999, 4096, 5001] {
                let bytes = packed(scheme, &wave(len));
                let stream = Stream::parse(&bytes, len).unwrap();
                stream.for_each_piece(|_, piece| {
                    let Piece::Codes(codes) = piece else { return };
                    let mut values = vec![0.0; codes.len()];
                    codes.decode_into(&mut values);
                    let [mut widest, mut portable] = [vec![5; codes.len()], vec![5; codes.len()]];
                    add(Arch::new(), &mut widest, &codes, scale);
                    add_portable(&mut portable, &codes, scale);
                    let one_by_one: Vec<i64> = values.iter().map(|v| 5 + narrow(*v, scale)).collect();
                    assert_eq!(portable, one_by_one, "{scheme}, {len} elements");
                    assert_eq!(widest, one_by_one, "{scheme}, {len} elements, {:?}", Arch::new());
                    compared += codes.len();
                });
            }
        }
        assert!(compared > 10_000, "packed codes of 4 bits come as codes: {compared}");
    }
}
