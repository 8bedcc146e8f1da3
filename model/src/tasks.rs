//! Losses and metrics of the tasks, on row-major outputs of a network.
//!
//! A row is what one loss term or vector of terms is made of: the logits of a sample, the logits of a token,
//! or the numbers of a sample.

use crate::evaluation::BatchEvaluation;
use fl_protocol::{Targets, Task};

/// Mean loss of a batch; writes its gradient over `outputs`, rows of `width` values.
///
/// The mean is over rows for cross-entropies and over all values for the others, as PyTorch's losses reduce.
/// Targets of another kind than the task's count as a loss that is not finite.
pub(crate) fn loss_and_gradient(task: &Task, outputs: &mut [f32], width: usize, targets: Targets<'_>) -> f32 {
    match (task, targets) {
        (Task::Classification { .. } | Task::LanguageModel, Targets::Classes(classes)) => {
            cross_entropy_gradient(outputs, width, classes)
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

fn cross_entropy_gradient(logits: &mut [f32], width: usize, classes: &[u32]) -> f32 {
    let scale = 1.0 / classes.len() as f32;
    let mut loss = 0.0f64;
    for (row, &class) in logits.chunks_exact_mut(width).zip(classes) {
        let max = row.iter().fold(f32::NEG_INFINITY, |max, value| if *value <= max { max } else { *value });
        let of_class = row[class as usize];
        let mut sum = 0.0f32;
        for value in row.iter_mut() {
            *value = (*value - max).exp();
            sum += *value;
        }
        loss += f64::from(sum.ln() + max - of_class);
        let factor = scale / sum;
        row.iter_mut().for_each(|value| *value *= factor);
        row[class as usize] -= scale;
    }
    (loss / classes.len() as f64) as f32
}

/// `-t ln s(y) - (1 - t) ln (1 - s(y))` without overflow.
fn binary_cross_entropy(y: f32, t: f32) -> f64 {
    let (y, t) = (f64::from(y), f64::from(t));
    y.max(0.0) - y * t + (-y.abs()).exp().ln_1p()
}

/// Loss and metrics of `outputs`, rows of `width` values.
pub(crate) fn evaluate(task: &Task, outputs: &[f32], width: usize, targets: Targets<'_>) -> BatchEvaluation {
    let mut sums = BatchEvaluation::default();
    match (task, targets) {
        (Task::Classification { .. } | Task::LanguageModel, Targets::Classes(classes)) => {
            let mut correct = 0;
            for (row, &class) in outputs.chunks_exact(width).zip(classes) {
                let best = largest(row);
                let max = f64::from(row[best]);
                let sum: f64 = row.iter().map(|value| (f64::from(*value) - max).exp()).sum();
                sums.loss_sum += max + sum.ln() - f64::from(row[class as usize]);
                correct += u64::from(best == class as usize);
            }
            sums.correct = Some(correct);
            sums.terms = classes.len() as u64;
        }
        (Task::Regression { .. }, Targets::Numbers(wanted)) => {
            let mut absolute_sum = 0.0;
            for (y, t) in outputs.iter().zip(wanted) {
                let difference = f64::from(*y) - f64::from(*t);
                sums.loss_sum += difference * difference;
                absolute_sum += difference.abs();
            }
            sums.absolute_sum = Some(absolute_sum);
            sums.terms = wanted.len() as u64;
        }
        (Task::Multilabel { .. }, Targets::Numbers(wanted)) => {
            let mut correct = 0;
            for (y, t) in outputs.iter().zip(wanted) {
                sums.loss_sum += binary_cross_entropy(*y, *t);
                correct += u64::from((*y > 0.0) == (*t > 0.5));
            }
            sums.correct = Some(correct);
            sums.terms = wanted.len() as u64;
        }
        _ => sums.loss_sum = f64::NAN,
    }
    sums
}

/// Index of the first of the largest values.
fn largest(row: &[f32]) -> usize {
    let mut best = 0;
    for (index, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = index;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::Evaluation;

    #[test]
    fn uniform_logits_cost_the_log_of_the_classes() {
        let sums = evaluate(&Task::classes(4), &[1.0; 8], 4, Targets::Classes(&[0, 3]));
        assert!((sums.loss_sum - 2.0 * 4f64.ln()).abs() < 1e-12);
        assert_eq!((sums.correct, sums.absolute_sum, sums.terms), (Some(1), None, 2));
    }

    #[test]
    fn a_regression_has_an_absolute_error_and_no_accuracy() {
        let task = Task::Regression { outputs: 2 };
        let mut sums = BatchEvaluation::default();
        sums += evaluate(&task, &[1.0, 2.0], 2, Targets::Numbers(&[0.0, 4.0]));
        sums += evaluate(&task, &[1.0, 1.0], 2, Targets::Numbers(&[1.0, 2.0]));
        let found = Evaluation::from(sums);
        assert_eq!((found.accuracy, found.absolute_error, found.loss), (None, Some(1.0), 1.5));
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let sums = evaluate(&Task::classes(2), &[1000.0, -1000.0], 2, Targets::Classes(&[0]));
        assert_eq!((sums.loss_sum, sums.correct), (0.0, Some(1)));
        let sums =
            evaluate(&Task::Multilabel { outputs: 2 }, &[1000.0, -1000.0], 2, Targets::Numbers(&[1.0, 0.0]));
        assert_eq!((sums.loss_sum, sums.correct, sums.terms), (0.0, Some(2), 2));
    }

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
            let loss = loss_and_gradient(&task, &mut gradient, 3, targets);
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
}
