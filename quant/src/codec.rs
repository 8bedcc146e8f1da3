//! The simple entry: one tensor to bytes and back.

use crate::{DecodeError, EncodeError, Encoder, Spec, Stream, encode_update};

/// Compresses one tensor.
///
/// `values` is the tensor in row-major order and `shape` its dimensions (`&[len]` for a vector). The shape
/// is not stored; the entropy coder predicts a value from those above it and beside it, so the true shape
/// saves bytes. Several tensors of one model are better encoded together: see [`encode_update`].
///
/// # Errors
/// If a value is not finite, if the shape does not hold `values.len()` elements, if there are more than
/// 2^28, or if the spec's width is not 1 to 8 bits.
pub fn compress(values: &[f32], shape: &[usize], spec: &Spec) -> Result<Vec<u8>, EncodeError> {
    let mut streams = Vec::new();
    encode_update(&mut Encoder::default(), values, &[shape.to_vec()], spec, &mut streams)?;
    Ok(streams.pop().unwrap_or_default())
}

/// Restores the `len` values of a tensor from what [`compress`] wrote.
///
/// Safe on untrusted bytes: nothing is allocated for a stream that does not hold exactly `len` values.
///
/// # Errors
/// If the bytes are damaged, truncated, of an unknown version or scheme, or of another length than `len`.
pub fn decompress(bytes: &[u8], len: usize) -> Result<Vec<f32>, DecodeError> {
    let stream = Stream::parse(bytes, len)?;
    let mut values = vec![0.0; len];
    stream.decode_into(&mut values);
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scheme;

    #[test]
    fn every_scheme_comes_back() {
        let values: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin()).collect();
        for scheme in Scheme::ALL {
            let bytes = compress(&values, &[20, 50], &Spec::new(scheme, 8)).unwrap();
            let restored = decompress(&bytes, values.len()).unwrap();
            let error: f32 = values.iter().zip(&restored).map(|(a, b)| (a - b).powi(2)).sum();
            let energy: f32 = values.iter().map(|v| v * v).sum();
            let bound = if scheme == Scheme::Bin { 0.25 } else { 1e-3 };
            assert!(error <= bound * energy, "{scheme}: {}", error / energy);
        }
    }

    #[test]
    fn wrong_arguments_are_errors() {
        let spec = Spec::default();
        assert_eq!(compress(&[1.0; 6], &[2, 2], &spec), Err(EncodeError::Shape { shape: 4, found: 6 }));
        assert_eq!(compress(&[1.0, f32::NAN], &[2], &spec), Err(EncodeError::NonFinite(1)));
        let bytes = compress(&[1.0; 6], &[2, 3], &spec).unwrap();
        assert_eq!(decompress(&bytes, 7), Err(DecodeError::WrongLength { expected: 7, found: 6 }));
        assert!(decompress(&bytes[..bytes.len() - 1], 6).is_err());
    }
}
