//! What a worker reports of a model that it has evaluated on data of its own.

use fl_model::Evaluation;
use fl_protocol::Metrics;

/// `loss`, and `accuracy` or `absolute_error` as the task has it. A value that is not finite is left out: a model that
/// has diverged on this worker's data has no loss.
pub fn metrics_of(evaluation: &Evaluation) -> Metrics {
    let Evaluation { accuracy, loss, absolute_error, .. } = *evaluation;
    let found = [("accuracy", accuracy), ("loss", Some(loss)), ("absolute_error", absolute_error)];
    let finite = found.into_iter().filter_map(|(name, value)| Some((name, value.filter(|v| v.is_finite())?)));
    // Infallible for these names.
    Metrics::new(finite).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_that_the_task_does_not_have_is_not_reported() {
        let regression = Evaluation { accuracy: None, loss: 2.0, absolute_error: Some(1.0), samples: 3 };
        let metrics = metrics_of(&regression);
        let names: Vec<_> = metrics.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["absolute_error", "loss"]);
        let diverged = Evaluation { accuracy: Some(0.1), loss: f64::NAN, absolute_error: None, samples: 3 };
        assert_eq!(metrics_of(&diverged), Metrics::new([("accuracy", 0.1)]).unwrap());
    }
}
