//! The rules under random events, beside a reference that is too simple to be wrong.
//!
//! A message may be handled although a tick is due: the owner of the state prefers messages. Failures print what
//! led to them; the seed is a new one each time.

use super::{
    tests::{commit_by as commit, id},
    *,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const WORKERS: usize = 7;
/// Seconds for which a worker that has asked counts as present.
const PRESENT_S: f64 = 2.0 * fl_protocol::limits::MAX_WAIT_S as f64;
/// Where workers are sampled, one that waits for work asks again after so many seconds.
const ASKS_AGAIN_S: f64 = 2.0;

#[derive(Debug, Clone)]
enum Action {
    Offer {
        worker: usize,
        back: u64,
    },
    /// An admitted update becomes part of the round, or turns out bad.
    Finish {
        pick: usize,
        good: bool,
    },
    ModelReady,
    Ask {
        worker: usize,
    },
    /// Time passes; due ticks are handled, or something else is first.
    Pass {
        seconds: f64,
        ticks: bool,
    },
    /// The process ends and starts again: admitted updates and whoever waits are gone.
    Restart,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        8 => (0..WORKERS, 0u64..8).prop_map(|(worker, back)| Action::Offer { worker, back }),
        8 => (any::<usize>(), prop::bool::weighted(0.8)).prop_map(|(pick, good)| Action::Finish { pick, good }),
        4 => Just(Action::ModelReady),
        6 => (0..WORKERS).prop_map(|worker| Action::Ask { worker }),
        3 => (0.0f64..4.0, any::<bool>()).prop_map(|(seconds, ticks)| Action::Pass { seconds, ticks }),
        1 => (50.0f64..200.0, any::<bool>()).prop_map(|(seconds, ticks)| Action::Pass { seconds, ticks }),
        1 => Just(Action::Restart),
    ]
}

fn any_rules() -> impl Strategy<Value = Rules> {
    let pause = prop_oneof![Just(0.0), 0.5f64..5.0, 50.0f64..100.0];
    let closing = (1usize..5, prop::option::of(1.0f64..8.0), 1usize..4, 0u64..8);
    let asking = (prop::option::of(1usize..5), pause, 1.0f64..60.0, any::<u64>());
    let memory = (0usize..4, prop::option::of(0u64..4));
    (closing, asking, memory).prop_map(|(closing, asking, (remember, max_staleness))| {
        let (target, deadline_s, min_at_deadline, rounds) = closing;
        let (sample, pause_s, task_timeout_s, seed) = asking;
        let min_at_deadline = min_at_deadline.min(target);
        Rules {
            target,
            deadline_s,
            min_at_deadline,
            sample,
            pause_s,
            task_timeout_s,
            rounds,
            seed,
            remember,
            max_staleness,
        }
    })
}

/// The state under test, and what is known of it from outside.
struct Run {
    rules: Rules,
    state: RoundState,
    now: f64,
    round: u64,
    closing: bool,
    /// Workers in the open round and the models that their updates were trained from.
    accepted: BTreeMap<WorkerId, u64>,
    in_flight: Vec<(WorkerId, u64)>,
    /// Who took part in each finished round.
    past: Vec<BTreeSet<WorkerId>>,
    /// Asynchronous operation: the newest model that each worker's accepted updates were trained from.
    newest: BTreeMap<WorkerId, u64>,
    /// Every (worker, base) that ever counted.
    counted: BTreeSet<(WorkerId, u64)>,
    /// Offers without an answer.
    offers: BTreeMap<OfferId, (WorkerId, u64)>,
    /// Those that wait for the outcome of others, in their order.
    parked: Vec<OfferId>,
    next_offer: OfferId,
    pause_until: f64,
    clock_from: Option<f64>,
    /// Sampling: when each worker asked last.
    seen: BTreeMap<WorkerId, f64>,
    /// Sampling: since when each chosen worker may train.
    chosen: BTreeMap<WorkerId, f64>,
    /// Workers that were told to wait and when; they ask again once they are invited.
    waiting: BTreeMap<WorkerId, f64>,
}

impl Run {
    fn new(rules: Rules) -> Self {
        Self {
            state: RoundState::new(rules.clone(), 0, vec![], 0.0),
            rules,
            now: 0.0,
            round: 0,
            closing: false,
            accepted: BTreeMap::new(),
            in_flight: Vec::new(),
            past: Vec::new(),
            newest: BTreeMap::new(),
            counted: BTreeSet::new(),
            offers: BTreeMap::new(),
            parked: Vec::new(),
            next_offer: 0,
            pause_until: f64::NEG_INFINITY,
            clock_from: None,
            seen: BTreeMap::new(),
            chosen: BTreeMap::new(),
            waiting: BTreeMap::new(),
        }
    }

    fn is_finished(&self) -> bool {
        self.rules.rounds > 0 && self.round >= self.rules.rounds
    }

    fn is_open(&self) -> bool {
        !self.closing && !self.is_finished()
    }

    fn deadline(&self) -> Option<f64> {
        Some(self.clock_from? + self.rules.deadline_s?)
    }

    fn suffices(&self, updates: usize) -> bool {
        let enough =
            self.deadline().is_some_and(|at| self.now >= at) && updates >= self.rules.min_at_deadline;
        updates >= self.rules.target || enough
    }

    fn is_full(&self) -> bool {
        self.suffices(self.accepted.len() + self.in_flight.len())
    }

    fn has_slot(&self, worker: &WorkerId) -> bool {
        self.accepted.contains_key(worker) || self.in_flight.iter().any(|(other, _)| other == worker)
    }

    fn should_close(&self) -> bool {
        self.is_open() && self.in_flight.is_empty() && self.suffices(self.accepted.len())
    }

    fn refusal(&self, worker: &WorkerId, base: u64) -> Option<Refusal> {
        if base > self.round {
            return Some(Refusal::Future);
        }
        let counted = self.counted.contains(&(worker.clone(), base));
        let (is_known, is_late) = match self.rules.max_staleness {
            Some(limit) => {
                let newest = self.newest.get(worker);
                let is_late = self.round - base > limit;
                (!is_late && newest == Some(&base), is_late || newest.is_some_and(|newest| *newest > base))
            }
            None => (counted && base + self.rules.remember as u64 >= self.round, base < self.round),
        };
        match is_known {
            true => Some(Refusal::Duplicate),
            false => (is_late || self.is_finished()).then_some(Refusal::Stale),
        }
    }

    /// Handles one event and checks everything that comes of it.
    fn step(&mut self, event: Event) {
        let (mut tried, is_offer) = match event {
            Event::Offer { id, .. } => (vec![id], true),
            _ => (std::mem::take(&mut self.parked), false),
        };
        let mut effects = self.state.step(event, self.now).into_iter().peekable();
        if !is_offer && self.should_close() {
            assert_eq!(effects.next(), Some(Effect::Close));
            self.closing = true;
        }
        for offer in tried.drain(..) {
            let (worker, base) = self.offers[&offer].clone();
            if let Some(refusal) = self.refusal(&worker, base) {
                assert_eq!(effects.next(), Some(Effect::Refuse(offer, refusal)));
                self.offers.remove(&offer);
            } else if self.closing || self.has_slot(&worker) || self.is_full() {
                self.parked.push(offer);
            } else {
                assert_eq!(effects.next(), Some(Effect::Admit(offer)));
                self.offers.remove(&offer);
                self.in_flight.push((worker, base));
                self.clock_from.get_or_insert(self.now);
            }
        }
        let invited = effects.next_if_eq(&Effect::Invite).is_some();
        assert_eq!(effects.next(), None, "every offer is answered once, and nothing else happens");
        assert!(self.accepted.len() + self.in_flight.len() <= self.rules.target);
        assert_eq!(self.state.round(), self.round);
        assert_eq!(self.state.accepted(), self.accepted.len());
        assert_eq!(self.state.is_open(), self.is_open());
        if invited {
            assert!(self.is_open() && !self.is_full(), "there is nothing to do");
            self.all_ask_again();
        }
    }

    fn offer(&mut self, worker: usize, back: u64) {
        let base = match back {
            0 => self.round + 1,
            1..5 => self.round,
            past => self.round.saturating_sub(past - 4),
        };
        self.next_offer += 1;
        let worker = id(worker);
        self.offers.insert(self.next_offer, (worker.clone(), base));
        self.step(Event::Offer { id: self.next_offer, worker, round: base });
    }

    fn finish(&mut self, pick: usize, good: bool) {
        if self.in_flight.is_empty() {
            return;
        }
        let (worker, base) = self.in_flight.swap_remove(pick % self.in_flight.len());
        if !good {
            return self.step(Event::Abort { worker });
        }
        assert!(self.is_open(), "a round that is closed admits nobody");
        assert!(self.accepted.insert(worker.clone(), base).is_none(), "once a round");
        assert!(self.counted.insert((worker.clone(), base)), "an update counts once");
        self.newest.insert(worker.clone(), base);
        self.step(commit(worker, base));
    }

    fn model_ready(&mut self) {
        let comes = self.closing;
        if comes {
            self.closing = false;
            self.past.push(std::mem::take(&mut self.accepted).into_keys().collect());
            self.round += 1;
            self.clock_from = None;
            self.pause_until = match self.rules.pause_s > 0.0 {
                true => self.now + self.rules.pause_s,
                false => f64::NEG_INFINITY,
            };
            self.seen.retain(|_, last| self.now - *last <= PRESENT_S);
            if let Some(size) = self.rules.sample {
                let since = self.now.max(self.pause_until);
                let drawn = draw(self.rules.seed, self.round, self.seen.keys(), size);
                self.chosen = drawn.into_iter().map(|worker| (worker.clone(), since)).collect();
            }
        }
        self.step(Event::ModelReady);
        if comes {
            self.all_ask_again();
        }
    }

    /// Sampling: whether the worker that asks has a place.
    fn has_place(&mut self, worker: &WorkerId) -> bool {
        let Some(size) = self.rules.sample else { return true };
        self.seen.insert(worker.clone(), self.now);
        if !self.chosen.contains_key(worker) && self.chosen.len() >= size {
            let (now, timeout_s) = (self.now, self.rules.task_timeout_s);
            let mut chosen = std::mem::take(&mut self.chosen);
            chosen.retain(|other, since| now - *since <= timeout_s || self.has_slot(other));
            self.chosen = chosen;
        }
        if self.chosen.len() < size {
            let since = self.now.max(self.pause_until);
            self.chosen.entry(worker.clone()).or_insert(since);
        }
        assert!(self.chosen.len() <= size);
        self.chosen.contains_key(worker)
    }

    fn ask(&mut self, worker: WorkerId) {
        let decision = self.state.ask(&worker, self.now);
        if self.is_finished() {
            return assert_eq!(decision, Decision::Stop);
        }
        let trains = self.is_open() && self.has_place(&worker) && self.has_work_for(&worker);
        if trains {
            self.clock_from.get_or_insert(self.now);
            let deadline_s = self.deadline().map(|at| (at - self.now).max(0.0));
            assert_eq!(decision, Decision::Train { deadline_s });
        } else {
            assert_eq!(decision, Decision::Wait);
            self.waiting.insert(worker, self.now);
        }
    }

    fn has_work_for(&self, worker: &WorkerId) -> bool {
        self.is_open() && self.now >= self.pause_until && !self.has_slot(worker) && !self.is_full()
    }

    fn all_ask_again(&mut self) {
        for worker in std::mem::take(&mut self.waiting).into_keys() {
            self.ask(worker);
        }
    }

    fn restart(&mut self) {
        if self.closing {
            return;
        }
        (self.offers, self.parked, self.in_flight) = Default::default();
        (self.seen, self.chosen, self.waiting) = Default::default();
        self.pause_until = f64::NEG_INFINITY;
        self.clock_from = (!self.accepted.is_empty()).then_some(self.now);
        let past = self.past.iter().map(|workers| workers.iter().cloned().collect());
        let state = RoundState::new(self.rules.clone(), self.round, (0..).zip(past).collect(), self.now);
        self.state = match self.rules.max_staleness {
            Some(limit) => {
                let is_needed = |base: u64| base + limit >= self.round;
                let newest = self.newest.iter().filter(|(_, base)| is_needed(**base));
                state.with_newest(newest.map(|(worker, base)| (worker.clone(), *base)).collect())
            }
            None => state,
        };
        for (worker, base) in &self.accepted {
            assert_eq!(self.state.step(commit(worker.clone(), *base), self.now), []);
        }
    }

    /// Handles what is due, and checks that nothing is left to do for which nobody comes back.
    fn settle(&mut self) {
        for _ in 0..3 {
            if self.state.next_wake(self.now).is_some_and(|at| at <= self.now) {
                self.step(Event::Tick);
            }
        }
        let wake = self.state.next_wake(self.now);
        assert!(wake.is_none_or(|at| at > self.now), "ticks for ever: {wake:?} at {}", self.now);
        assert!(!self.should_close());
        let deadline = self.deadline().filter(|at| *at > self.now);
        let pause = Some(self.pause_until).filter(|at| *at > self.now);
        for due in [deadline, pause].into_iter().flatten().filter(|_| self.is_open()) {
            assert!(wake.is_some_and(|at| at <= due), "{wake:?} is after {due}");
        }
        if self.rules.sample.is_some() {
            let due = self.now - ASKS_AGAIN_S;
            let again: Vec<_> = self.waiting.iter().filter(|(_, asked)| **asked <= due).collect();
            for worker in again.into_iter().map(|(worker, _)| worker.clone()).collect::<Vec<_>>() {
                self.waiting.remove(&worker);
                self.ask(worker);
            }
        }
        for worker in self.waiting.keys() {
            let has_place = self.rules.sample.is_none() || self.chosen.contains_key(worker);
            assert!(!has_place || !self.has_work_for(worker), "{worker} waits for an invitation");
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Offer { worker, back } => self.offer(worker, back),
            Action::Finish { pick, good } => self.finish(pick, good),
            Action::ModelReady => self.model_ready(),
            Action::Ask { worker } => self.ask(id(worker)),
            Action::Pass { seconds, ticks } => {
                self.now += seconds;
                if ticks {
                    self.settle();
                }
            }
            Action::Restart => self.restart(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]
    #[test]
    fn random_events_keep_every_promise(rules in any_rules(), actions in prop::collection::vec(action(), 1..300)) {
        let mut run = Run::new(rules);
        for action in actions {
            run.act(action);
        }
        // Whatever waits is answered once what it waits for has happened: others hand in what their rounds lack.
        for other in WORKERS..WORKERS + 1000 {
            run.settle();
            match (run.closing, run.in_flight.is_empty()) {
                (true, _) => run.model_ready(),
                (false, false) => run.finish(0, true),
                (false, true) if run.offers.is_empty() => break,
                (false, true) => run.offer(other, 1),
            }
        }
        prop_assert!(run.offers.is_empty(), "unanswered: {:?}", run.offers);
    }
}
