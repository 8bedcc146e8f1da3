//! The rules against a reference that is too simple to be wrong.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn rules(target: usize) -> Rules {
    Rules {
        target,
        deadline_s: None,
        min_at_deadline: 1,
        sample: None,
        pause_s: 0.0,
        task_timeout_s: 60.0,
        rounds: 0,
        seed: 1,
        remember: 2,
        max_staleness: None,
    }
}

fn id(i: usize) -> WorkerId {
    format!("w{i}").parse().unwrap()
}

fn offer(offer: OfferId, worker: usize, round: u64) -> Event {
    Event::Offer { id: offer, worker: id(worker), round }
}

fn commit(worker: usize) -> Event {
    commit_of(worker, 0)
}

fn commit_of(worker: usize, base: u64) -> Event {
    let contribution = Contribution {
        num_samples: 1,
        local_norm: 1.0,
        norm: 0.0,
        base,
        loss: None,
        bytes: 1,
        reused_bytes: None,
    };
    Event::Commit { worker: id(worker), contribution }
}

fn abort(worker: usize) -> Event {
    Event::Abort { worker: id(worker) }
}

#[test]
fn a_round_closes_at_its_target_and_late_ones_are_stale() {
    let mut state = RoundState::new(rules(2), 0, vec![], 0.0);
    assert_eq!(state.step(offer(1, 0, 0), 0.0), [Effect::Admit(1)]);
    assert_eq!(state.step(offer(2, 1, 0), 0.0), [Effect::Admit(2)]);
    assert_eq!(state.step(offer(3, 2, 0), 0.0), [], "the round is full: this one waits for its outcome");
    assert_eq!(state.step(commit(0), 0.0), []);
    assert_eq!(state.step(commit(1), 0.0), [Effect::Close]);
    assert_eq!(state.step(Event::ModelReady, 0.0), [Effect::Refuse(3, Refusal::Stale)]);
    assert_eq!(state.round(), 1);
    assert_eq!(state.step(offer(4, 1, 0), 0.0), [Effect::Refuse(4, Refusal::Duplicate)]);
    assert_eq!(state.step(offer(5, 1, 2), 0.0), [Effect::Refuse(5, Refusal::Future)]);
}

#[test]
fn late_updates_count_in_asynchronous_operation_and_retries_do_not() {
    let mut state = RoundState::new(Rules { max_staleness: Some(2), ..rules(1) }, 0, vec![], 0.0);
    for round in 0..3 {
        assert_eq!(state.step(offer(round + 1, 0, round), 0.0), [Effect::Admit(round + 1)]);
        assert_eq!(state.step(commit_of(0, round), 0.0), [Effect::Close]);
        state.step(Event::ModelReady, 0.0);
    }
    assert_eq!(state.step(offer(4, 0, 2), 0.0), [Effect::Refuse(4, Refusal::Duplicate)]);
    assert_eq!(state.step(offer(5, 0, 1), 0.0), [Effect::Refuse(5, Refusal::Stale)]);
    assert_eq!(state.step(offer(6, 1, 0), 0.0), [Effect::Refuse(6, Refusal::Stale)], "three rounds late");
    assert_eq!(state.step(offer(7, 1, 1), 0.0), [Effect::Admit(7)], "two rounds late");
    assert_eq!(state.step(offer(8, 2, 3), 0.0), [], "the round is full");
    assert_eq!(state.step(commit_of(1, 1), 0.0), [Effect::Close]);
    assert_eq!(state.step(Event::ModelReady, 0.0), [Effect::Admit(8)], "it counts in the next round");
    assert_eq!(state.newest().get(&id(1)), None, "it is too old by now to come again");
    let again = RoundState::new(Rules { max_staleness: Some(2), ..rules(1) }, 3, vec![], 0.0);
    let mut again = again.with_newest(state.newest().clone());
    assert_eq!(again.step(offer(9, 0, 2), 0.0), [Effect::Refuse(9, Refusal::Duplicate)]);
}

#[test]
fn a_place_that_is_given_back_goes_to_the_one_who_waits() {
    let mut state = RoundState::new(rules(1), 0, vec![], 0.0);
    state.step(offer(1, 0, 0), 0.0);
    assert_eq!(state.step(offer(2, 1, 0), 0.0), []);
    assert_eq!(state.step(abort(0), 0.0), [Effect::Admit(2)]);
    assert_eq!(state.step(commit(1), 0.0), [Effect::Close]);
}

#[test]
fn a_place_that_nobody_waits_for_invites_those_who_ask() {
    let mut state = RoundState::new(rules(1), 0, vec![], 0.0);
    state.step(offer(1, 0, 0), 0.0);
    assert_eq!(state.ask(&id(1), 0.0), Decision::Wait);
    assert_eq!(state.step(abort(0), 0.0), [Effect::Invite]);
    assert_eq!(state.ask(&id(1), 0.0), Decision::Train { deadline_s: None });
}

#[test]
fn nobody_is_asked_during_the_pause_and_updates_are_taken_all_the_same() {
    let mut state = RoundState::new(Rules { pause_s: 5.0, ..rules(1) }, 0, vec![], 0.0);
    assert_eq!(state.ask(&id(0), 0.0), Decision::Train { deadline_s: None }, "no pause before the first");
    state.step(offer(1, 0, 0), 0.0);
    state.step(commit(0), 1.0);
    assert_eq!(state.step(Event::ModelReady, 2.0), []);
    assert_eq!(state.next_wake(2.0), Some(7.0));
    assert_eq!(state.ask(&id(0), 6.9), Decision::Wait);
    assert_eq!(state.step(Event::Tick, 7.0), [Effect::Invite]);
    assert_eq!(state.next_wake(7.0), None);
    assert_eq!(state.ask(&id(0), 7.0), Decision::Train { deadline_s: None });
    state.step(offer(2, 0, 1), 7.0);
    state.step(commit(0), 7.0);
    state.step(Event::ModelReady, 7.0);
    assert_eq!(state.step(offer(3, 1, 2), 8.0), [Effect::Admit(3)]);
}

#[test]
fn two_requests_of_one_worker_count_once() {
    let mut state = RoundState::new(rules(3), 0, vec![], 0.0);
    state.step(offer(1, 0, 0), 0.0);
    assert_eq!(state.step(offer(2, 0, 0), 0.0), []);
    assert_eq!(state.step(commit(0), 0.0), [Effect::Refuse(2, Refusal::Duplicate)]);
    assert_eq!(state.accepted(), 1);
}

#[test]
fn the_deadline_closes_with_enough_updates_and_waits_without() {
    let mut state =
        RoundState::new(Rules { deadline_s: Some(10.0), min_at_deadline: 2, ..rules(5) }, 0, vec![], 0.0);
    assert_eq!(state.next_wake(99.0), None, "nobody is there yet: the clock stands");
    assert_eq!(state.ask(&id(0), 100.0), Decision::Train { deadline_s: Some(10.0) });
    assert_eq!(state.next_wake(100.0), Some(110.0));
    state.step(offer(1, 0, 0), 105.0);
    state.step(commit(0), 105.0);
    assert_eq!(state.step(Event::Tick, 110.0), [], "one update is too few");
    assert_eq!(state.next_wake(111.0), None, "no need to look again before the next update");
    state.step(offer(2, 1, 0), 120.0);
    assert_eq!(state.step(commit(1), 121.0), [Effect::Close]);
}

#[test]
fn an_update_on_its_way_at_the_deadline_is_waited_for() {
    let mut state = RoundState::new(Rules { deadline_s: Some(10.0), ..rules(5) }, 0, vec![], 0.0);
    state.step(offer(1, 0, 0), 0.0);
    state.step(commit(0), 0.0);
    state.step(offer(2, 1, 0), 9.9);
    assert_eq!(state.step(Event::Tick, 10.0), []);
    assert_eq!(state.step(offer(3, 2, 0), 10.1), [], "no more are let in");
    assert_eq!(state.step(commit(1), 10.2), [Effect::Close]);
    assert_eq!(state.contributions().count(), 2);
}

#[test]
fn the_last_round_ends_the_training() {
    let mut state = RoundState::new(Rules { rounds: 1, ..rules(1) }, 0, vec![], 0.0);
    state.step(offer(1, 0, 0), 0.0);
    state.step(commit(0), 0.0);
    state.step(Event::ModelReady, 0.0);
    assert!(state.is_finished());
    assert_eq!(state.ask(&id(0), 0.0), Decision::Stop);
    assert_eq!(state.step(offer(2, 0, 0), 0.0), [Effect::Refuse(2, Refusal::Duplicate)]);
    assert_eq!(state.step(offer(3, 0, 1), 0.0), [Effect::Refuse(3, Refusal::Stale)]);
}

#[test]
fn who_has_sent_its_update_waits_for_the_next_round() {
    let mut state = RoundState::new(rules(2), 0, vec![], 0.0);
    assert_eq!(state.ask(&id(0), 0.0), Decision::Train { deadline_s: None });
    state.step(offer(1, 0, 0), 0.0);
    state.step(commit(0), 0.0);
    assert_eq!(state.ask(&id(0), 0.0), Decision::Wait);
}

#[derive(Debug, Clone)]
enum Action {
    Offer { worker: usize, back: u64 },
    Finish { pick: usize, good: bool },
    ModelReady,
    Pass(f64),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (0usize..6, 0u64..6).prop_map(|(worker, back)| Action::Offer { worker, back }),
        4 => (any::<usize>(), prop::bool::weighted(0.8)).prop_map(|(pick, good)| Action::Finish { pick, good }),
        2 => Just(Action::ModelReady),
        1 => (0.0f64..4.0).prop_map(Action::Pass),
    ]
}

/// The reference: sets of who was accepted in which round, and every offer's fate.
#[derive(Default)]
struct Reference {
    accepted: BTreeSet<(usize, u64)>,
    in_flight: Vec<usize>,
    open_offers: BTreeMap<OfferId, (usize, u64)>,
    closing: bool,
    round: u64,
}

impl Reference {
    fn accepted_in(&self, round: u64) -> usize {
        self.accepted.iter().filter(|(_, r)| *r == round).count()
    }

    fn take(&mut self, effect: &Effect, rules: &Rules, deadline_passed: bool) {
        match effect {
            Effect::Admit(offer) => {
                let (worker, round) = self.open_offers.remove(offer).expect("answered once");
                assert_eq!(round, self.round);
                assert!(!self.closing && !self.in_flight.contains(&worker));
                assert!(!self.accepted.contains(&(worker, round)));
                self.in_flight.push(worker);
                assert!(self.in_flight.len() + self.accepted_in(round) <= rules.target);
            }
            Effect::Refuse(offer, refusal) => {
                let (worker, round) = self.open_offers.remove(offer).expect("answered once");
                let remembered = round + rules.remember as u64 >= self.round;
                let expected = if round > self.round {
                    Refusal::Future
                } else if remembered && self.accepted.contains(&(worker, round)) {
                    Refusal::Duplicate
                } else {
                    assert!(round < self.round || rules.rounds == self.round);
                    Refusal::Stale
                };
                assert_eq!(*refusal, expected);
            }
            Effect::Close => {
                assert!(!self.closing && self.in_flight.is_empty());
                let accepted = self.accepted_in(self.round);
                assert!(accepted == rules.target || (deadline_passed && accepted >= rules.min_at_deadline));
                self.closing = true;
            }
            Effect::Invite => assert!(!self.closing),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn random_events_keep_every_promise(
        actions in prop::collection::vec(action(), 1..200),
        target in 1usize..5,
        deadline in prop::option::of(1.0f64..8.0),
        rounds in 0u64..6,
    ) {
        let rules = Rules { deadline_s: deadline, rounds, ..rules(target) };
        let mut state = RoundState::new(rules.clone(), 0, vec![], 0.0);
        let mut reference = Reference::default();
        let (mut now, mut next_offer) = (0.0, 0);
        for action in actions {
            let event = match action {
                Action::Offer { worker, back } => {
                    let round = match back {
                        0 => state.round() + 1,
                        1..4 => state.round(),
                        past => state.round().saturating_sub(past - 3),
                    };
                    next_offer += 1;
                    reference.open_offers.insert(next_offer, (worker, round));
                    offer(next_offer, worker, round)
                }
                Action::Finish { pick, good } => {
                    if reference.in_flight.is_empty() {
                        continue;
                    }
                    let worker = reference.in_flight.swap_remove(pick % reference.in_flight.len());
                    if good {
                        reference.accepted.insert((worker, reference.round));
                        commit(worker)
                    } else {
                        abort(worker)
                    }
                }
                Action::ModelReady => {
                    if reference.closing {
                        reference.closing = false;
                        reference.round += 1;
                    }
                    Event::ModelReady
                }
                Action::Pass(seconds) => {
                    now += seconds;
                    Event::Tick
                }
            };
            let deadline_passed = state.deadline().is_some_and(|at| now >= at);
            for effect in state.step(event, now) {
                reference.take(&effect, &rules, deadline_passed);
            }
            prop_assert_eq!(state.round(), reference.round);
            prop_assert_eq!(state.accepted(), reference.accepted_in(reference.round));
        }
        // Whatever waits is answered once what it waits for has happened.
        for _ in 0..1000 {
            let event = if let Some(worker) = reference.in_flight.pop() {
                reference.accepted.insert((worker, reference.round));
                commit(worker)
            } else if reference.closing {
                reference.closing = false;
                reference.round += 1;
                Event::ModelReady
            } else {
                break;
            };
            let deadline_passed = state.deadline().is_some_and(|at| now >= at);
            for effect in state.step(event, now) {
                reference.take(&effect, &rules, deadline_passed);
            }
        }
        prop_assert!(reference.open_offers.is_empty(), "unanswered: {:?}", reference.open_offers);
    }
}
