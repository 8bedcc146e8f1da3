//! Cross-entropy and hits of logits, for evaluation.

use crate::evaluation::BatchEvaluation;

/// Evaluates row-major logits, one row of `classes` per label. A hit is a row whose largest logit is the
/// label's.
pub(crate) fn evaluate_logits(logits: &[f32], labels: &[u32], classes: usize) -> BatchEvaluation {
    let mut loss = 0.0;
    let mut correct = 0;
    for (row, &label) in logits.chunks_exact(classes).zip(labels) {
        let mut best = 0;
        for (class, value) in row.iter().enumerate() {
            if *value > row[best] {
                best = class;
            }
        }
        let max = f64::from(row[best]);
        let sum: f64 = row.iter().map(|value| (f64::from(*value) - max).exp()).sum();
        loss += max + sum.ln() - f64::from(row[label as usize]);
        correct += u64::from(best == label as usize);
    }
    BatchEvaluation { loss_sum: loss, correct, samples: labels.len() as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_logits_cost_the_log_of_the_classes() {
        let sums = evaluate_logits(&[1.0; 8], &[0, 3], 4);
        assert!((sums.loss_sum - 2.0 * 4f64.ln()).abs() < 1e-12);
        assert_eq!((sums.correct, sums.samples), (1, 2));
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let sums = evaluate_logits(&[1000.0, -1000.0], &[0], 2);
        assert_eq!((sums.loss_sum, sums.correct), (0.0, 1));
    }
}
