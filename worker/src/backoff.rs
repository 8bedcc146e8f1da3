//! Waiting times between attempts.

use rand::{RngExt, rngs::ChaCha8Rng};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);

/// Longest `Retry-After` that is obeyed: a confused server must not silence a worker for a day.
const LONGEST_ASKED: Duration = Duration::from_secs(120);

/// Exponential back-off with jitter, so that workers that failed together do not return together.
#[derive(Debug)]
pub struct Backoff {
    rng: ChaCha8Rng,
    attempts: u32,
}

impl Backoff {
    /// A back-off with no failure yet.
    pub fn new(rng: ChaCha8Rng) -> Self {
        Self { rng, attempts: 0 }
    }

    /// Forgets the failures: the last attempt went well.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    /// How long to wait after one more failure: at least what the server asked for.
    pub fn next(&mut self, asked: Option<Duration>) -> Duration {
        let ceiling = FIRST.saturating_mul(1 << self.attempts.min(16)).min(LONGEST);
        self.attempts = self.attempts.saturating_add(1);
        let jittered = ceiling.mul_f64(self.rng.random_range(0.5..=1.0));
        match asked {
            Some(asked) => asked.min(LONGEST_ASKED) + jittered.min(FIRST),
            None => jittered,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn backoff() -> Backoff {
        Backoff::new(ChaCha8Rng::seed_from_u64(1))
    }

    #[test]
    fn it_grows_to_a_ceiling_and_starts_anew_after_success() {
        let mut backoff = backoff();
        assert!(backoff.next(None) <= FIRST);
        let waits: Vec<_> = (0..40).map(|_| backoff.next(None)).collect();
        assert!(waits.iter().all(|wait| *wait <= LONGEST));
        assert!(waits[39] >= LONGEST / 2);
        backoff.reset();
        assert!(backoff.next(None) <= FIRST);
    }

    #[test]
    fn the_server_is_obeyed_within_reason() {
        let asked = Duration::from_secs(3);
        assert!(backoff().next(Some(asked)) >= asked);
        assert!(backoff().next(Some(Duration::from_secs(1_000_000))) <= LONGEST_ASKED + FIRST);
    }
}
