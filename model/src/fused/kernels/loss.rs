//! Losses of the tasks and their gradients, on row-major outputs of a network.

use super::{math, softmax};
use crate::{
    fused::{parallel::Threads, simd},
    tasks::binary_cross_entropy,
};
use fl_protocol::{Targets, Task};
use pulp::{Simd, WithSimd};

/// Values of a piece of work: the pieces depend on shapes alone, for they are summed one by one.
const PIECE: usize = 1 << 13;

/// Mean loss of a batch; writes its gradient over `outputs`, rows of `width` values.
///
/// The mean is over rows for cross-entropies and over all values for the others, as PyTorch's losses reduce.
/// Targets of another kind than the task's count as a loss that is not finite.
pub(crate) fn loss_and_gradient(
    task: &Task,
    outputs: &mut [f32],
    width: usize,
    targets: Targets<'_>,
    threads: &Threads,
) -> f32 {
    match (task, targets) {
        (Task::Classification { .. } | Task::LanguageModel, Targets::Classes(classes)) => {
            cross_entropy(outputs, width, classes, threads)
        }
        (Task::Regression { .. }, Targets::Numbers(wanted)) => {
            let scale = 1.0 / outputs.len() as f32;
            let mut sum = 0.0f64;
            for (y, t) in outputs.iter_mut().zip(wanted) {
                let difference = *y - t;
                sum += f64::from(difference) * f64::from(difference);
                *y = 2.0 * scale * difference;
            }
            (sum / outputs.len() as f64) as f32
        }
        (Task::Multilabel { .. }, Targets::Numbers(wanted)) => {
            let scale = 1.0 / outputs.len() as f32;
            let mut sum = 0.0f64;
            for (y, t) in outputs.iter_mut().zip(wanted) {
                sum += binary_cross_entropy(*y, *t);
                *y = scale * (1.0 / (1.0 + (-*y).exp()) - t);
            }
            (sum / outputs.len() as f64) as f32
        }
        _ => f32::NAN,
    }
}

/// Every row by itself; the sums of the losses are made in pieces of rows.
fn cross_entropy(logits: &mut [f32], width: usize, classes: &[u32], threads: &Threads) -> f32 {
    let scale = 1.0 / classes.len() as f32;
    let rows = PIECE.div_ceil(width);
    let mut pieces: Vec<_> =
        logits.chunks_mut(rows * width).zip(classes.chunks(rows)).map(|piece| (piece, 0.0f64)).collect();
    threads.each(&mut pieces, |_, ((logits, classes), loss)| {
        *loss = simd::run(CrossEntropy { logits, width, classes, scale });
    });
    let loss: f64 = pieces.iter().map(|(_, loss)| loss).sum();
    (loss / classes.len() as f64) as f32
}

/// Rows of logits become gradients of `scale` times the sum of their losses, which is the output.
struct CrossEntropy<'a> {
    logits: &'a mut [f32],
    width: usize,
    classes: &'a [u32],
    scale: f32,
}

impl WithSimd for CrossEntropy<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let Self { logits, width, classes, scale } = self;
        let mut loss = 0.0f64;
        for (row, &class) in logits.chunks_exact_mut(width).zip(classes) {
            let max = softmax::largest(row);
            let of_class = row[class as usize];
            let shift = simd.splat_f32s(max);
            let (full, rest) = S::as_mut_simd_f32s(row);
            for value in full {
                *value = math::exp(simd, simd.sub_f32s(*value, shift));
            }
            if !rest.is_empty() {
                let value = simd.sub_f32s(simd.partial_load_f32s(rest), shift);
                simd.partial_store_f32s(rest, math::exp(simd, value));
            }
            let sum = softmax::sum(row);
            loss += f64::from(sum.ln() + max - of_class);
            let factor = scale / sum;
            for value in row.iter_mut() {
                *value *= factor;
            }
            row[class as usize] -= scale;
        }
        loss
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::evaluate;

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let classes = [1u32, 2];
        let numbers = [0.0f32, 1.0, 1.0, 0.0, 0.0, 1.0];
        for (task, targets) in [
            (Task::classes(3), Targets::Classes(&classes)),
            (Task::Regression { outputs: 3 }, Targets::Numbers(&numbers)),
            (Task::Multilabel { outputs: 3 }, Targets::Numbers(&numbers)),
        ] {
            let outputs = [0.3f32, -0.7, 1.1, 0.2, 0.9, -1.3];
            let mut gradient = outputs;
            let loss = loss_and_gradient(&task, &mut gradient, 3, targets, &Threads::none());
            let mean = |outputs: &[f32]| {
                let sums = evaluate(&task, outputs, 3, targets);
                sums.loss_sum / sums.terms as f64
            };
            assert!((f64::from(loss) - mean(&outputs)).abs() < 1e-6);
            for at in 0..6 {
                let mut moved = outputs;
                moved[at] += 1e-2;
                let up = mean(&moved);
                moved[at] -= 2e-2;
                let slope = (up - mean(&moved)) / 2e-2;
                assert!((slope - f64::from(gradient[at])).abs() < 1e-4, "{task:?} {at}: {slope}");
            }
        }
    }

    #[test]
    fn cross_entropy_is_that_of_f64_on_any_number_of_threads() {
        let (width, rows) = (77, 300);
        let logits: Vec<f32> = (0..width * rows).map(|i| ((i * 7919) % 1013) as f32 / 100.0 - 5.0).collect();
        let classes: Vec<u32> = (0..rows).map(|row| (row * 31 % width) as u32).collect();
        let run = |threads: usize| {
            let threads = Threads::new(threads).unwrap();
            let mut gradient = logits.clone();
            let loss = threads.enter(|| cross_entropy(&mut gradient, width, &classes, &threads));
            (loss, gradient)
        };
        let (loss, gradient) = run(1);
        assert_eq!((loss, &gradient), (run(2).0, &run(2).1));
        let sums = evaluate(&Task::classes(width), &logits, width, Targets::Classes(&classes));
        assert!((f64::from(loss) - sums.loss_sum / rows as f64).abs() < 1e-6 * f64::from(loss));
        for (row, gradient) in logits.chunks(width).zip(gradient.chunks(width)) {
            assert!(gradient.iter().sum::<f32>().abs() < 1e-8, "{row:?}");
        }
        // Far above what an exponential can hold, and what is not a number.
        let mut far = [1000.0, -1000.0];
        assert_eq!(cross_entropy(&mut far, 2, &[0], &Threads::none()), 0.0);
        let mut lost = [1.0, f32::NAN, 2.0];
        assert!(cross_entropy(&mut lost, 3, &[0], &Threads::none()).is_nan());
    }
}
