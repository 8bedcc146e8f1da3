//! Evaluations by the workers, on data of their own: who is asked, what is taken, and what comes of it. No clock, no
//! threads: the service asks, hands results in, and reads the outcome.
//!
//! An evaluation is a report about a model and no part of it: nothing waits for one, and a restart forgets the single
//! results of the newest models (what was written to the history stays).

mod board;
mod spread;

use board::Board;
use fl_protocol::{ClientEvaluation, Metrics, WorkerId};
use sha2::{Digest, Sha256};
pub use spread::{Reported, spreads};
use std::collections::BTreeMap;

/// Models whose evaluations are taken at the same time: the newest that are evaluated.
const MAX_BOARDS: usize = 3;

/// Which models are evaluated by the workers, and by how many of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EvaluationRules {
    /// Rounds between two evaluated models; 0 = none is.
    pub every: u64,
    /// Share of the workers that are asked, above 0, at most 1.
    pub fraction: f64,
    /// Rounds until the training is over, whose model is evaluated too; 0 = no end.
    pub rounds: u64,
    /// Seed of the choice of workers.
    pub seed: u64,
}

impl EvaluationRules {
    /// Whether the model of `round` is evaluated. The initial model, which no round made, is not.
    pub fn is_due(&self, round: u64) -> bool {
        let is_last = self.rounds > 0 && round >= self.rounds;
        self.every > 0 && round > 0 && (is_last || round.is_multiple_of(self.every))
    }

    /// Whether `worker` is among those that evaluate the model of `round`. The choice does not depend on who else is
    /// there, nor on which workers train.
    pub fn chooses(&self, worker: &WorkerId, round: u64) -> bool {
        let digest: [u8; 32] = Sha256::new()
            .chain_update(b"evaluate")
            .chain_update(self.seed.to_le_bytes())
            .chain_update(round.to_le_bytes())
            .chain_update(worker.as_str())
            .finalize()
            .into();
        let drawn = digest.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        (drawn as f64 / u64::MAX as f64) < self.fraction || self.fraction >= 1.0
    }
}

/// Why a result is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Untaken {
    /// The model does not exist yet.
    Future,
    /// The model is not evaluated by workers, or no longer.
    Closed,
    /// As many results of this model are there as are kept.
    Full,
}

/// The results of the newest models.
#[derive(Debug, Clone)]
pub struct Evaluations {
    rules: EvaluationRules,
    boards: BTreeMap<u64, Board>,
}

impl Evaluations {
    /// None yet.
    pub fn new(rules: EvaluationRules) -> Self {
        Self { rules, boards: BTreeMap::new() }
    }

    /// The rules.
    pub fn rules(&self) -> &EvaluationRules {
        &self.rules
    }

    /// Whether `worker` is to evaluate the newest model, that of `round`, now. True at most once for each worker and
    /// model.
    pub fn ask(&mut self, worker: &WorkerId, round: u64) -> bool {
        self.rules.is_due(round) && self.rules.chooses(worker, round) && self.board(round).ask(worker)
    }

    /// Takes a result in. `newest` is the round of the newest model. True if it is new, false if this worker's result
    /// was there already.
    ///
    /// # Errors
    /// Why it is not taken.
    pub fn add(
        &mut self,
        worker: &WorkerId,
        round: u64,
        newest: u64,
        num_samples: u64,
        metrics: &Metrics,
    ) -> Result<bool, Untaken> {
        if round > newest {
            return Err(Untaken::Future);
        }
        let is_older = self.boards.len() == MAX_BOARDS
            && self.boards.first_key_value().is_some_and(|(oldest, _)| round < *oldest);
        // Without this a result for an old model of which nothing is known any more would open a board anew.
        let is_open = round == newest || self.boards.contains_key(&round);
        if !self.rules.is_due(round) || is_older || !is_open {
            return Err(Untaken::Closed);
        }
        self.board(round).add(worker, num_samples, metrics)
    }

    /// What the workers found of the model of `round`; none if there is no result.
    pub fn found(&self, round: u64) -> Option<ClientEvaluation> {
        self.boards.get(&round)?.found()
    }

    /// The models that have new results since the last call.
    pub fn take_changed(&mut self) -> Vec<u64> {
        let changed = |(round, board): (&u64, &mut Board)| board.take_changed().then_some(*round);
        self.boards.iter_mut().filter_map(changed).collect()
    }

    fn board(&mut self, round: u64) -> &mut Board {
        while self.boards.len() >= MAX_BOARDS && !self.boards.contains_key(&round) {
            self.boards.pop_first();
        }
        self.boards.entry(round).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> EvaluationRules {
        EvaluationRules { every: 2, fraction: 1.0, rounds: 5, seed: 7 }
    }

    fn id(i: usize) -> WorkerId {
        format!("w{i}").parse().unwrap()
    }

    fn accuracy(value: f64) -> Metrics {
        Metrics::new([("accuracy", value)]).unwrap()
    }

    #[test]
    fn every_nth_model_and_the_last_are_evaluated_and_the_initial_one_is_not() {
        let due = |rules: EvaluationRules| (0..7).filter(|round| rules.is_due(*round)).collect::<Vec<_>>();
        assert_eq!(due(rules()), [2, 4, 5, 6]);
        assert_eq!(due(EvaluationRules { rounds: 0, ..rules() }), [2, 4, 6]);
        assert!(due(EvaluationRules { every: 0, ..rules() }).is_empty());
    }

    #[test]
    fn a_worker_is_asked_once_for_a_model() {
        let mut evaluations = Evaluations::new(rules());
        assert!(!evaluations.ask(&id(0), 1));
        assert!(evaluations.ask(&id(0), 2) && evaluations.ask(&id(1), 2));
        assert!(!evaluations.ask(&id(0), 2));
        assert!(evaluations.ask(&id(0), 4));
        // Whoever has reported by himself is not asked.
        evaluations.add(&id(5), 4, 4, 10, &accuracy(0.5)).unwrap();
        assert!(!evaluations.ask(&id(5), 4));
    }

    #[test]
    fn the_choice_is_a_share_that_the_seed_determines() {
        let half = EvaluationRules { fraction: 0.5, ..rules() };
        let chosen = |rules: EvaluationRules, round| {
            (0..1000).filter(|i| rules.chooses(&id(*i), round)).collect::<Vec<_>>()
        };
        let found = chosen(half, 2);
        assert!((400..600).contains(&found.len()), "{}", found.len());
        assert_eq!(found, chosen(half, 2));
        assert_ne!(found, chosen(half, 4));
        assert_ne!(found, chosen(EvaluationRules { seed: 8, ..half }, 2));
        assert_eq!(chosen(rules(), 2).len(), 1000);
    }

    #[test]
    fn results_count_once_and_only_for_models_that_are_evaluated() {
        let mut evaluations = Evaluations::new(rules());
        let mut add = |worker, round, newest| evaluations.add(&id(worker), round, newest, 10, &accuracy(0.5));
        assert_eq!(add(0, 2, 2), Ok(true));
        assert_eq!(add(0, 2, 2), Ok(false));
        assert_eq!(add(0, 3, 2), Err(Untaken::Future));
        assert_eq!(add(0, 1, 2), Err(Untaken::Closed));
        assert_eq!(add(1, 2, 3), Ok(true), "a late one");
        assert_eq!(add(0, 3, 3), Err(Untaken::Closed), "round 3 is not due");
        for round in [4, 5, 6] {
            assert_eq!(add(0, round, round), Ok(true));
        }
        assert_eq!(add(2, 2, 6), Err(Untaken::Closed), "too old");
        assert_eq!(evaluations.found(6).unwrap().clients, 1);
        assert_eq!(evaluations.take_changed(), [4, 5, 6]);
        assert!(evaluations.take_changed().is_empty());
        assert_eq!(evaluations.found(2), None);
    }
}
