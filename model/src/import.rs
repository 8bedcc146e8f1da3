//! Parameters of a network from a safetensors file that another program wrote.

use crate::{error::ModelError, header::check_header_size};
use fl_protocol::{ModelLayout, TensorLayout};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

/// A counter of PyTorch's batch normalisation, which the networks here do not have.
const COUNTER: &str = "num_batches_tracked";
/// Tensors that a refusal lists.
const LISTED: usize = 3;

/// Reads the parameters of a network of `layout` in canonical order from any safetensors file with tensors of its
/// names and shapes, as a `state_dict` of PyTorch has them: F32, F16 or BF16. `num_batches_tracked` is left out.
///
/// # Errors
/// [`ModelError::BadFile`] with the first three tensors that are missing, unknown, or of another shape or type.
pub fn read_parameters(bytes: &[u8], layout: &ModelLayout) -> Result<Vec<f32>, ModelError> {
    let bad = |error: String| ModelError::BadFile(error);
    check_header_size(bytes)?;
    let file = SafeTensors::deserialize(bytes).map_err(|error| bad(error.to_string()))?;
    let wrong = misfits(&file, layout);
    if !wrong.is_empty() {
        let more = match wrong.len().saturating_sub(LISTED) {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        let first: Vec<_> = wrong.iter().take(LISTED).map(String::as_str).collect();
        return Err(bad(format!("it is not of this network: {}{more}", first.join(", "))));
    }
    let mut parameters = Vec::with_capacity(layout.parameters());
    for tensor in layout.tensors() {
        let view = file.tensor(&tensor.name).map_err(|error| bad(error.to_string()))?;
        append(&mut parameters, &view);
        let values = parameters.get(tensor.offset..).unwrap_or_default();
        if values.len() != tensor.len || values.iter().any(|value| !value.is_finite()) {
            return Err(bad(format!("a value of `{}` is not finite", tensor.name)));
        }
    }
    Ok(parameters)
}

/// What does not fit, in the network's order, then what it does not have.
fn misfits(file: &SafeTensors<'_>, layout: &ModelLayout) -> Vec<String> {
    let misfit = |tensor: &TensorLayout| {
        let TensorLayout { name, shape, .. } = tensor;
        let Ok(view) = file.tensor(name) else { return Some(format!("`{name}` {shape:?} is missing")) };
        if view.shape() != shape.as_slice() {
            return Some(format!("`{name}` is {:?} and should be {shape:?}", view.shape()));
        }
        let known = matches!(view.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16);
        (!known).then(|| format!("`{name}` is {:?} and should be F32, F16 or BF16", view.dtype()))
    };
    let mut wrong: Vec<String> = layout.tensors().iter().filter_map(misfit).collect();
    let is_counter = |name: &str| name.rsplit('.').next() == Some(COUNTER);
    let mut unknown: Vec<_> = file
        .iter()
        .filter(|(name, _)| !is_counter(name) && !layout.tensors().iter().any(|tensor| tensor.name == *name))
        .map(|(name, view)| format!("`{name}` {:?} is unknown", view.shape()))
        .collect();
    unknown.sort_unstable();
    wrong.append(&mut unknown);
    wrong
}

/// Appends the values of a tensor, F32, F16 or BF16.
pub(crate) fn append(parameters: &mut Vec<f32>, view: &TensorView<'_>) {
    let bytes = view.data();
    let pairs = || bytes.as_chunks::<2>().0.iter();
    match view.dtype() {
        Dtype::F16 => parameters.extend(pairs().map(|pair| f16::from_le_bytes(*pair).to_f32())),
        Dtype::BF16 => parameters.extend(pairs().map(|pair| bf16::from_le_bytes(*pair).to_f32())),
        _ => parameters.extend(bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::serialize;

    fn layout() -> ModelLayout {
        ModelLayout::new(vec![("1.weight".into(), vec![2, 2]), ("1.bias".into(), vec![2])])
    }

    fn file(tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) -> Vec<u8> {
        let views = tensors.iter().map(|(name, dtype, shape, data)| {
            (*name, TensorView::new(*dtype, shape.to_vec(), data).unwrap())
        });
        serialize(views, None).unwrap()
    }

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn three_types_are_read_and_the_counter_of_batches_is_left_out() {
        let weight = floats(&[1.0, -2.0, 3.5, 0.25]);
        let bias = [0.5f32, -0.75];
        let half: Vec<u8> = bias.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect();
        let brain: Vec<u8> = bias.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect();
        for (dtype, data) in [(Dtype::F32, floats(&bias)), (Dtype::F16, half), (Dtype::BF16, brain)] {
            let bytes = file(&[
                ("1.num_batches_tracked", Dtype::I64, &[], vec![0; 8]),
                ("1.bias", dtype, &[2], data),
                ("1.weight", Dtype::F32, &[2, 2], weight.clone()),
            ]);
            let found = read_parameters(&bytes, &layout()).unwrap();
            assert_eq!(found, [1.0, -2.0, 3.5, 0.25, 0.5, -0.75], "{dtype:?}");
        }
    }

    #[test]
    fn the_first_three_that_do_not_fit_are_named_with_their_shapes() {
        let bytes = file(&[
            ("1.weight", Dtype::F32, &[4], floats(&[0.0; 4])),
            ("b", Dtype::F32, &[1], floats(&[0.0])),
            ("a", Dtype::F32, &[1], floats(&[0.0])),
        ]);
        assert_eq!(
            read_parameters(&bytes, &layout()).unwrap_err().to_string(),
            "this is not a usable model file: it is not of this network: `1.weight` is [4] and should be [2, 2], \
             `1.bias` [2] is missing, `a` [1] is unknown, and 1 more"
        );
        let wide = file(&[
            ("1.weight", Dtype::F32, &[2, 2], floats(&[0.0; 4])),
            ("1.bias", Dtype::F64, &[2], vec![0; 16]),
        ]);
        assert!(read_parameters(&wide, &layout()).unwrap_err().to_string().contains("is F64"));
    }

    #[test]
    fn values_that_are_not_finite_and_damaged_files_are_refused() {
        let bytes = file(&[
            ("1.weight", Dtype::F32, &[2, 2], floats(&[0.0, f32::NAN, 0.0, 0.0])),
            ("1.bias", Dtype::F32, &[2], floats(&[0.0; 2])),
        ]);
        assert!(read_parameters(&bytes, &layout()).unwrap_err().to_string().contains("not finite"));
        for cut in 0..bytes.len() {
            assert!(read_parameters(&bytes[..cut], &layout()).is_err(), "at {cut}");
        }
    }
}
