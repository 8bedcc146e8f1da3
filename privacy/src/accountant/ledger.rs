//! What a training has spent so far.

use super::{MAX_ROUNDS, Mechanism, Rounds, plan, plan::Accountant, pld, rdp};
use crate::PrivacyError;
use serde::{Deserialize, Serialize};

/// Most runs of consecutive rounds with the same mechanism.
const MAX_RUNS: usize = 100_000;

/// The rounds that were charged, each once, with what it cost.
///
/// Consecutive rounds with the same mechanism are stored as one run, so that a long training takes a few bytes. As
/// JSON: `{"runs":[{"first":1,"count":20,"noise_multiplier":1.3,"sampling_rate":0.01}]}`. Reading checks everything.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawLedger")]
pub struct Ledger {
    /// Sorted, not overlapping; neighbours differ or leave a gap.
    runs: Vec<Run>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Run {
    first: u64,
    count: u64,
    #[serde(flatten)]
    mechanism: Mechanism,
}

#[derive(Deserialize)]
struct RawLedger {
    runs: Vec<RawRun>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRun {
    first: u64,
    count: u64,
    noise_multiplier: f64,
    sampling_rate: f64,
}

impl TryFrom<RawLedger> for Ledger {
    type Error = PrivacyError;

    fn try_from(raw: RawLedger) -> Result<Self, PrivacyError> {
        let mut ledger = Self::default();
        for RawRun { first, count, noise_multiplier, sampling_rate } in raw.runs {
            let mechanism = Mechanism::new(noise_multiplier, sampling_rate)?;
            let follows = ledger.runs.last().is_none_or(|last| last.end() <= first);
            let fits = count > 0 && count <= MAX_ROUNDS && first.checked_add(count).is_some();
            if !(follows && fits) {
                return Err(PrivacyError::OutOfRange {
                    name: "a run's first round",
                    value: first as f64,
                    allowed: "runs in ascending order that do not overlap, each of at least one round",
                });
            }
            ledger.insert(ledger.runs.len(), Run { first, count, mechanism })?;
        }
        ledger.check_total()?;
        Ok(ledger)
    }
}

impl Run {
    /// The round after the last.
    fn end(&self) -> u64 {
        self.first + self.count
    }

    fn continued_by(&self, next: &Self) -> bool {
        self.end() == next.first && self.mechanism == next.mechanism
    }
}

impl Ledger {
    /// Charges one round; false if it was charged before, which changes nothing.
    ///
    /// # Errors
    /// The round was charged with another mechanism, or there are too many rounds or runs.
    pub fn charge(&mut self, round: u64, mechanism: Mechanism) -> Result<bool, PrivacyError> {
        let at = self.runs.partition_point(|run| run.end() <= round);
        if let Some(run) = self.runs.get(at).filter(|run| run.first <= round) {
            return if run.mechanism == mechanism { Ok(false) } else { Err(PrivacyError::Conflict(round)) };
        }
        let in_range = round < u64::MAX && self.rounds() < MAX_ROUNDS;
        crate::error::in_range("the round", round as f64, in_range, "at most 1000000000 rounds in all")?;
        self.insert(at, Run { first: round, count: 1, mechanism })?;
        Ok(true)
    }

    /// Number of rounds charged.
    pub fn rounds(&self) -> u64 {
        self.runs.iter().map(|run| run.count).sum()
    }

    /// The rounds by mechanism, for the accountants.
    pub fn groups(&self) -> Vec<Rounds> {
        self.runs.iter().map(|run| Rounds { mechanism: run.mechanism, count: run.count }).collect()
    }

    /// Epsilon so far by Renyi divergences; 0 before the first round.
    ///
    /// # Errors
    /// Those of [`rdp::epsilon()`].
    pub fn epsilon_rdp(&self, delta: f64) -> Result<rdp::Bound, PrivacyError> {
        rdp::epsilon(&self.groups(), delta)
    }

    /// Epsilon so far by privacy loss distributions; 0 before the first round.
    ///
    /// # Errors
    /// Those of [`pld::epsilon()`].
    pub fn epsilon_pld(&self, delta: f64) -> Result<f64, PrivacyError> {
        pld::epsilon(&self.groups(), delta)
    }

    /// How many more rounds with `mechanism` the budget allows; `None` if more than [`MAX_ROUNDS`].
    ///
    /// # Errors
    /// Those of [`plan::most_rounds`].
    pub fn rounds_left(
        &self,
        accountant: Accountant,
        epsilon: f64,
        delta: f64,
        mechanism: &Mechanism,
    ) -> Result<Option<u64>, PrivacyError> {
        plan::most_rounds(accountant, epsilon, mechanism, &self.groups(), delta)
    }

    /// Inserts a run before `at`, and joins it with the runs beside it.
    fn insert(&mut self, at: usize, run: Run) -> Result<(), PrivacyError> {
        let joins_left = at > 0 && self.runs[at - 1].continued_by(&run);
        if joins_left {
            self.runs[at - 1].count += run.count;
        } else if self.runs.len() < MAX_RUNS {
            self.runs.insert(at, run);
        } else {
            return Err(PrivacyError::TooMany {
                what: "runs of rounds",
                found: MAX_RUNS + 1,
                limit: MAX_RUNS,
            });
        }
        let here = if joins_left { at - 1 } else { at };
        if here + 1 < self.runs.len() && self.runs[here].continued_by(&self.runs[here + 1]) {
            let next = self.runs.remove(here + 1);
            self.runs[here].count += next.count;
        }
        Ok(())
    }

    fn check_total(&self) -> Result<(), PrivacyError> {
        let total = self.runs.iter().try_fold(0u64, |total, run| total.checked_add(run.count));
        let good = total.is_some_and(|total| total <= MAX_ROUNDS);
        let value = self.runs.iter().map(|run| run.count as f64).sum();
        crate::error::in_range("the number of rounds", value, good, "at most 1000000000 in all").map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mechanism(sigma: f64) -> Mechanism {
        Mechanism::new(sigma, 0.01).unwrap()
    }

    #[test]
    fn a_round_is_charged_once() {
        let mut ledger = Ledger::default();
        // Out of order, with a gap that is filled last.
        for round in [3, 1, 5, 4, 2] {
            assert!(ledger.charge(round, mechanism(1.0)).unwrap());
            assert!(!ledger.charge(round, mechanism(1.0)).unwrap());
        }
        assert_eq!(ledger.charge(4, mechanism(2.0)), Err(PrivacyError::Conflict(4)));
        assert_eq!((ledger.rounds(), ledger.runs.len()), (5, 1));
        let same = [Rounds::new(mechanism(1.0), 5).unwrap()];
        assert_eq!(ledger.epsilon_rdp(1e-5).unwrap(), rdp::epsilon(&same, 1e-5).unwrap());
    }

    #[test]
    fn an_empty_ledger_costs_nothing() {
        let ledger = Ledger::default();
        assert_eq!(ledger.epsilon_rdp(1e-5).unwrap().epsilon, 0.0);
        assert_eq!(ledger.epsilon_pld(1e-5).unwrap(), 0.0);
    }

    #[test]
    fn json_returns_the_ledger() {
        let mut ledger = Ledger::default();
        for round in 1..=20 {
            ledger.charge(round, mechanism(1.3)).unwrap();
        }
        ledger.charge(30, mechanism(2.0)).unwrap();
        let json = serde_json::to_string(&ledger).unwrap();
        assert_eq!(
            json,
            r#"{"runs":[{"first":1,"count":20,"noise_multiplier":1.3,"sampling_rate":0.01},{"first":30,"count":1,"noise_multiplier":2.0,"sampling_rate":0.01}]}"#
        );
        assert_eq!(serde_json::from_str::<Ledger>(&json).unwrap(), ledger);
    }

    #[test]
    fn a_bad_file_is_refused() {
        let run = |first: u64, count: u64, sigma: f64| {
            format!(r#"{{"first":{first},"count":{count},"noise_multiplier":{sigma},"sampling_rate":0.5}}"#)
        };
        let cases = [
            vec![run(1, 0, 1.0)],
            vec![run(1, 5, 1.0), run(3, 5, 2.0)],
            vec![run(5, 5, 1.0), run(1, 2, 1.0)],
            vec![run(1, 5, 0.0)],
            vec![run(u64::MAX, 2, 1.0)],
            vec![run(1, MAX_ROUNDS, 1.0), run(MAX_ROUNDS + 1, 1, 1.0)],
            vec![run(1, 1, 1.0).replace('}', r#","x":1}"#)],
        ];
        for case in cases {
            let json = format!(r#"{{"runs":[{}]}}"#, case.join(","));
            assert!(serde_json::from_str::<Ledger>(&json).is_err(), "{json}");
        }
    }

    #[test]
    fn the_last_round_number_is_refused() {
        assert!(Ledger::default().charge(u64::MAX, mechanism(1.0)).is_err());
    }
}
