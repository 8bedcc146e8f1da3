//! Cross-entropy of logits, for evaluation.

/// Sums of one batch: `(cross-entropy in nats, samples whose largest logit is the label's)`.
///
/// `logits` is row-major, one row of `classes` per label.
pub(crate) fn evaluate_logits(logits: &[f32], labels: &[u32], classes: usize) -> (f64, u64) {
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
    (loss, correct)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_logits_cost_the_log_of_the_classes() {
        let (loss, correct) = evaluate_logits(&[1.0; 8], &[0, 3], 4);
        assert!((loss - 2.0 * 4f64.ln()).abs() < 1e-12);
        assert_eq!(correct, 1);
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let (loss, correct) = evaluate_logits(&[1000.0, -1000.0], &[0], 2);
        assert_eq!((loss, correct), (0.0, 1));
    }
}
