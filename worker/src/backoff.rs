//! Waiting times between attempts.

use rand::{RngExt, rngs::ChaCha8Rng};
use std::time::Duration;

/// Longest `Retry-After` that is obeyed: a confused server must not silence a worker for a day.
const LONGEST_ASKED: Duration = Duration::from_secs(120);

/// Exponential back-off with full jitter, so that workers that failed together do not return together.
#[derive(Debug)]
pub(crate) struct Backoff {
    rng: ChaCha8Rng,
    first: Duration,
    longest: Duration,
    attempts: u32,
}

impl Backoff {
    /// For repeated calls. Two workers have different generators, and so different pauses.
    pub(crate) fn for_calls(rng: ChaCha8Rng) -> Self {
        Self { rng, first: Duration::from_millis(200), longest: Duration::from_secs(10), attempts: 0 }
    }

    /// For repeated training: what failed once most likely fails again.
    pub(crate) fn for_training(rng: ChaCha8Rng) -> Self {
        Self { rng, first: Duration::from_secs(2), longest: Duration::from_secs(120), attempts: 0 }
    }

    /// Forgets the failures: the last attempt went well.
    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }

    /// How long to wait after one more failure: what the server asked for at least, and on top of it any
    /// time up to a ceiling that doubles.
    ///
    /// A server that is overloaded asks all workers for the same second: without the second part they would
    /// come back in step, again and again.
    pub(crate) fn next(&mut self, asked: Option<Duration>) -> Duration {
        let ceiling = self.first.saturating_mul(1 << self.attempts.min(16)).min(self.longest);
        self.attempts = self.attempts.saturating_add(1);
        asked.unwrap_or_default().min(LONGEST_ASKED) + ceiling.mul_f64(self.rng.random_range(0.0..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fl_datasets::{Purpose, seeded_rng};

    fn backoff(worker: &str) -> Backoff {
        Backoff::for_calls(seeded_rng(42, worker, 0, Purpose::Jitter))
    }

    #[test]
    fn it_grows_to_a_ceiling_and_starts_anew_after_success() {
        let mut backoff = backoff("w");
        assert!(backoff.next(None) <= backoff.first);
        let waits: Vec<_> = (0..100).map(|_| backoff.next(None)).collect();
        assert!(waits.iter().all(|wait| *wait <= backoff.longest));
        let late: Duration = waits[20..].iter().sum();
        assert!(late > backoff.longest.mul_f64(0.35) * 80, "half of the ceiling on average");
        backoff.reset();
        assert!(backoff.next(None) <= backoff.first);
    }

    #[test]
    fn the_server_is_obeyed_within_reason() {
        let asked = Duration::from_secs(3);
        assert!(backoff("w").next(Some(asked)) >= asked);
        let day = Duration::from_secs(86_400);
        assert!(backoff("w").next(Some(day)) <= LONGEST_ASKED + Duration::from_millis(200));
    }

    #[test]
    fn workers_that_are_asked_for_the_same_second_spread_out() {
        // 50 workers, six answers of 503 with `Retry-After: 1` each: when do they come for the seventh time?
        let arrivals = |worker: usize| {
            let mut backoff = backoff(&format!("worker-{worker}"));
            (0..6).map(|_| backoff.next(Some(Duration::from_secs(1)))).sum::<Duration>()
        };
        let mut times: Vec<Duration> = (0..50).map(arrivals).collect();
        assert!(times.iter().all(|time| *time >= Duration::from_secs(6)), "nobody comes too early");
        times.sort();
        assert!(times[49] - times[0] > Duration::from_secs(4), "{:?} to {:?}", times[0], times[49]);
        let in_step = times.windows(10).filter(|ten| ten[9] - ten[0] < Duration::from_millis(200)).count();
        assert_eq!(in_step, 0, "ten within a fifth of a second");
        assert_eq!(arrivals(3), arrivals(3), "a worker's jitter depends on its name and seed alone");
    }
}
