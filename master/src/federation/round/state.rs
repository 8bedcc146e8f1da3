//! The state machine of the rounds.

use super::{Contribution, Decision, Effect, Event, OfferId, Refusal, Rules, sampling::Sampling};
use fl_protocol::WorkerId;
use std::collections::{BTreeMap, VecDeque};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    Closing,
    Finished,
}

#[derive(Debug, Clone, PartialEq)]
enum Slot {
    Reserved,
    Accepted(Contribution),
}

#[derive(Debug, Clone)]
struct Parked {
    id: OfferId,
    worker: WorkerId,
    round: u64,
}

/// The state of the rounds.
#[derive(Debug, Clone)]
pub struct RoundState {
    rules: Rules,
    round: u64,
    phase: Phase,
    opened: f64,
    /// Whether the pause at the round's start is still on.
    pausing: bool,
    /// When the deadline's clock began: at the round's first sign of life.
    clock_from: Option<f64>,
    slots: BTreeMap<WorkerId, Slot>,
    accepted: usize,
    parked: VecDeque<Parked>,
    /// Participants of the last finished rounds, the newest last.
    past: VecDeque<(u64, Vec<WorkerId>)>,
    sampling: Option<Sampling>,
    /// Asynchronous operation: the model that each worker's newest update was trained from. A worker
    /// takes newer and newer models, so that tells a retry from a new update.
    newest: BTreeMap<WorkerId, u64>,
}

impl RoundState {
    /// Opens `round`. `past` are the participants of earlier rounds, the oldest first.
    pub fn new(rules: Rules, round: u64, past: Vec<(u64, Vec<WorkerId>)>, now: f64) -> Self {
        let sampling = rules.sample.map(|size| Sampling::new(size, rules.seed, rules.task_timeout_s));
        let mut state = Self {
            rules,
            round,
            phase: Phase::Open,
            opened: now,
            pausing: false,
            clock_from: None,
            slots: BTreeMap::new(),
            accepted: 0,
            parked: VecDeque::new(),
            past: past.into(),
            sampling,
            newest: BTreeMap::new(),
        };
        state.forget_old();
        if state.finishes_with(round) {
            state.phase = Phase::Finished;
        }
        state
    }

    /// Goes on with the models that the workers' newest updates were trained from.
    #[must_use]
    pub fn with_newest(mut self, newest: BTreeMap<WorkerId, u64>) -> Self {
        self.newest = newest;
        self
    }

    /// Goes on with updates that the open round had accepted before a restart. If they suffice to close it, the
    /// next [`Event::Tick`] says so.
    #[must_use]
    pub fn with_accepted(
        mut self,
        updates: impl IntoIterator<Item = (WorkerId, Contribution)>,
        now: f64,
    ) -> Self {
        for (worker, contribution) in updates {
            self.commit(worker, contribution, now);
        }
        self
    }

    /// Asynchronous operation: the model that each worker's newest update was trained from.
    pub fn newest(&self) -> &BTreeMap<WorkerId, u64> {
        &self.newest
    }

    /// Number of the open round: the model that updates start from.
    pub fn round(&self) -> u64 {
        self.round
    }

    /// When it opened.
    pub fn opened(&self) -> f64 {
        self.opened
    }

    /// Whether the last round is done.
    pub fn is_finished(&self) -> bool {
        self.phase == Phase::Finished
    }

    /// Whether the training is over once `round` models have been made.
    pub fn finishes_with(&self, round: u64) -> bool {
        self.rules.rounds > 0 && round >= self.rules.rounds
    }

    /// Updates that are accepted for the open round.
    pub fn accepted(&self) -> usize {
        self.accepted
    }

    /// Whether a round is open for updates.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Updates that are admitted and not yet accepted.
    pub fn on_their_way(&self) -> usize {
        self.slots.len() - self.accepted
    }

    /// Updates that close a round.
    pub fn target(&self) -> usize {
        self.rules.target
    }

    /// The accepted updates, in the order of the workers' names.
    pub fn contributions(&self) -> impl Iterator<Item = (&WorkerId, &Contribution)> {
        self.slots.iter().filter_map(|(worker, slot)| match slot {
            Slot::Accepted(contribution) => Some((worker, contribution)),
            Slot::Reserved => None,
        })
    }

    /// Whether the open round has accepted an update of `worker` that was trained from round `base`.
    pub fn has_accepted(&self, worker: &WorkerId, base: u64) -> bool {
        matches!(self.slots.get(worker), Some(Slot::Accepted(update)) if update.base == base)
    }

    /// When [`Event::Tick`] is due.
    pub fn next_wake(&self, now: f64) -> Option<f64> {
        if self.should_close(now) {
            return Some(now);
        }
        if self.phase != Phase::Open {
            return None;
        }
        // A deadline that has passed with too few updates needs no tick: the next commit decides.
        let deadline = self.deadline().filter(|deadline| *deadline > now);
        let pause = self.pausing.then(|| self.pause_ends());
        match (deadline, pause) {
            (Some(deadline), Some(pause)) => Some(deadline.min(pause)),
            (deadline, pause) => deadline.or(pause),
        }
    }

    /// Moves on by one event.
    pub fn step(&mut self, event: Event, now: f64) -> Vec<Effect> {
        let mut effects = Vec::new();
        let mut invite = false;
        match event {
            Event::Offer { id, worker, round } => {
                self.decide(Parked { id, worker, round }, now, &mut effects);
                return effects;
            }
            Event::Commit { worker, contribution } => self.commit(worker, contribution, now),
            Event::Abort { worker } => {
                if self.slots.get(&worker) == Some(&Slot::Reserved) {
                    self.slots.remove(&worker);
                    invite = true;
                }
            }
            Event::Tick => {}
            Event::ModelReady => self.open_next(now),
        }
        if self.pausing && now >= self.pause_ends() {
            self.pausing = false;
            invite = true;
        }
        if self.should_close(now) {
            self.phase = Phase::Closing;
            effects.push(Effect::Close);
        }
        self.retry_parked(now, &mut effects);
        if invite && self.phase == Phase::Open && !self.is_full(now) {
            effects.push(Effect::Invite);
        }
        effects
    }

    /// Answers a worker that asks for work.
    pub fn ask(&mut self, worker: &WorkerId, now: f64) -> Decision {
        match self.phase {
            Phase::Finished => return Decision::Stop,
            Phase::Closing => return Decision::Wait,
            Phase::Open => {}
        }
        // The tick that is due tells everyone else, so `pausing` stays until then.
        let (starts, slots) = (self.starts(), &self.slots);
        let chosen = match &mut self.sampling {
            Some(sampling) => sampling.ask(worker, now, starts, |id| slots.contains_key(id)),
            None => true,
        };
        if now < starts || !chosen || self.slots.contains_key(worker) || self.is_full(now) {
            return Decision::Wait;
        }
        self.clock_from.get_or_insert(now);
        Decision::Train { deadline_s: self.deadline().map(|deadline| (deadline - now).max(0.0)) }
    }

    fn decide(&mut self, offer: Parked, now: f64, effects: &mut Vec<Effect>) {
        let refusal = if offer.round > self.round {
            Some(Refusal::Future)
        } else if let Some(limit) = self.rules.max_staleness {
            self.refusal_of_late(&offer, limit)
        } else if offer.round < self.round {
            let took_part = self.past.iter().any(|(round, workers)| {
                *round == offer.round && workers.binary_search(&offer.worker).is_ok()
            });
            Some(if took_part { Refusal::Duplicate } else { Refusal::Stale })
        } else if matches!(self.slots.get(&offer.worker), Some(Slot::Accepted(_))) {
            Some(Refusal::Duplicate)
        } else if self.phase == Phase::Finished {
            Some(Refusal::Stale)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            effects.push(Effect::Refuse(offer.id, refusal));
        } else if self.phase == Phase::Closing || self.slots.contains_key(&offer.worker) || self.is_full(now)
        {
            self.parked.push_back(offer);
        } else {
            self.clock_from.get_or_insert(now);
            effects.push(Effect::Admit(offer.id));
            self.slots.insert(offer.worker, Slot::Reserved);
        }
    }

    fn refusal_of_late(&self, offer: &Parked, limit: u64) -> Option<Refusal> {
        let newest = self.newest.get(&offer.worker);
        if newest == Some(&offer.round) {
            return Some(Refusal::Duplicate);
        }
        let is_late = newest.is_some_and(|newest| *newest > offer.round)
            || self.round - offer.round > limit
            || self.phase == Phase::Finished;
        is_late.then_some(Refusal::Stale)
    }

    fn commit(&mut self, worker: WorkerId, contribution: Contribution, now: f64) {
        if self.rules.max_staleness.is_some() {
            self.newest.insert(worker.clone(), contribution.base);
        }
        // A replay commits without an offer: there is no reservation then.
        if matches!(self.slots.insert(worker, Slot::Accepted(contribution)), None | Some(Slot::Reserved)) {
            self.accepted += 1;
        }
        self.clock_from.get_or_insert(now);
    }

    /// Whether the reserved and the accepted updates together suffice to close.
    fn is_full(&self, now: f64) -> bool {
        self.suffices(self.slots.len(), now)
    }

    fn suffices(&self, updates: usize, now: f64) -> bool {
        updates >= self.rules.target
            || (updates >= self.rules.min_at_deadline
                && self.deadline().is_some_and(|deadline| now >= deadline))
    }

    /// A round closes only when no admitted update is on its way: it is in the sum or it is not.
    fn should_close(&self, now: f64) -> bool {
        self.phase == Phase::Open && self.accepted == self.slots.len() && self.suffices(self.accepted, now)
    }

    fn pause_ends(&self) -> f64 {
        self.opened + self.rules.pause_s
    }

    /// When workers may begin to train.
    fn starts(&self) -> f64 {
        if self.pausing { self.pause_ends() } else { self.opened }
    }

    pub(super) fn deadline(&self) -> Option<f64> {
        Some(self.clock_from? + self.rules.deadline_s?)
    }

    fn open_next(&mut self, now: f64) {
        if self.phase != Phase::Closing {
            return;
        }
        let workers = std::mem::take(&mut self.slots).into_keys().collect();
        self.past.push_back((self.round, workers));
        self.round += 1;
        self.forget_old();
        self.accepted = 0;
        self.opened = now;
        self.pausing = self.rules.pause_s > 0.0;
        self.clock_from = None;
        self.phase = if self.finishes_with(self.round) { Phase::Finished } else { Phase::Open };
        let starts = self.starts();
        if let Some(sampling) = &mut self.sampling {
            sampling.open(self.round, now, starts);
        }
    }

    fn forget_old(&mut self) {
        while self.past.len() > self.rules.remember {
            self.past.pop_front();
        }
        // What is older is refused for its age.
        let oldest = self.round.saturating_sub(self.rules.max_staleness.unwrap_or(0));
        self.newest.retain(|_, base| *base >= oldest);
    }

    fn retry_parked(&mut self, now: f64, effects: &mut Vec<Effect>) {
        for offer in std::mem::take(&mut self.parked) {
            self.decide(offer, now, effects);
        }
    }
}
