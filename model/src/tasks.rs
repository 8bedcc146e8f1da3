//! Metrics of the tasks, on row-major outputs of a network.
//!
//! A row is what one loss term or vector of terms is made of: the logits of a sample, the logits of a token,
//! or the numbers of a sample.

use crate::evaluation::BatchEvaluation;
use fl_protocol::{Targets, Task};

/// `-t ln s(y) - (1 - t) ln (1 - s(y))` without overflow.
pub(crate) fn binary_cross_entropy(y: f32, t: f32) -> f64 {
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
}
