//! The lossless stage: context-adaptive entropy coding of integers.
//!
//! The integers of a tensor are laid out in rows ([`layout`]) and coded up to four rows in parallel, each
//! one column behind the row above ([`wavefront`]). The neighbours that are already coded ([`context`])
//! select one of a few hundred adaptive models ([`model`]) for the integer's symbol ([`token`]), which is
//! coded by [`rans`]. rANS encodes backwards: the encoder ([`coder`]) runs forwards over the integers to
//! record symbols and probabilities, then codes them from the end. The decoder ([`decoder`]) needs one
//! pass.

mod coder;
mod context;
mod decoder;
mod layout;
mod model;
mod rans;
mod segments;
mod token;
mod trellis;
mod wavefront;

pub use coder::{EntropyCoder, SymbolCosts, sample_len, token_cost};
pub use decoder::EntropyDecoder;
pub use layout::RowLayout;
pub use segments::{CodedIntegers, IntegerCoder, append_segments};
pub use token::MAX_MAGNITUDE;
pub use trellis::{NEXT, Quantization, STATES, TrellisState, quantizer};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::byte_reader::ByteReader;
    use proptest::prelude::*;

    /// Integers of any magnitude; most are small, as those of a delta.
    fn integers() -> impl Strategy<Value = Vec<i32>> {
        let max = MAX_MAGNITUDE as i32;
        let integer = prop_oneof![
            20 => Just(0),
            20 => -3..=3,
            10 => -40..=40,
            3 => -40_000..=40_000,
            1 => prop_oneof![Just(max), Just(-max), Just(i32::from(i16::MIN)), Just(i32::from(i16::MAX))],
        ];
        // Above 4096 elements four rows are coded in parallel, above 512 columns in several spans.
        prop_oneof![
            proptest::collection::vec(integer.clone(), 0..300),
            proptest::collection::vec(integer, 4000..9000),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn any_integers_come_back(integers in integers(), rows in 1usize..12, trellis: bool) {
            let quantization = if trellis { Quantization::Trellis } else { Quantization::Scalar };
            let rows = rows.min(integers.len().max(1));
            let integers = &integers[..integers.len() / rows * rows];
            let mut layout = RowLayout::new(&[rows, integers.len() / rows], integers.len());
            IntegerCoder::default().find_stride(&mut layout, integers);
            let mut bytes = Vec::new();
            IntegerCoder::default().write(layout, None, quantization, integers, &mut bytes);

            let mut reader = ByteReader::new(&bytes, 0);
            let parsed = RowLayout::parse(integers.len(), &mut reader).unwrap();
            prop_assert_eq!(RowLayout { shift: layout.shift, ..parsed }, layout);
            let mut decoded = Vec::new();
            EntropyDecoder::default().for_each_chunk(
                &parsed, quantization, reader.rest(), integers.len(),
                |offset, integers, _| {
                    assert_eq!(offset, decoded.len());
                    decoded.extend_from_slice(integers);
                },
            );
            // Under the trellis the decoder gives levels.
            let mut expected = Vec::new();
            for row in integers.chunks(layout.cols) {
                let mut state = TrellisState::default();
                for index in row {
                    expected.push(quantization.level(state.quantizer(), *index));
                    if trellis {
                        state.advance(*index);
                    }
                }
            }
            prop_assert_eq!(decoded, expected);
        }
    }
}
