//! The rules, one at a time.

use super::*;

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

pub(super) fn id(i: usize) -> WorkerId {
    format!("w{i}").parse().unwrap()
}

fn offer(offer: OfferId, worker: usize, round: u64) -> Event {
    Event::Offer { id: offer, worker: id(worker), round }
}

fn commit(worker: usize) -> Event {
    commit_of(worker, 0)
}

fn commit_of(worker: usize, base: u64) -> Event {
    commit_by(id(worker), base)
}

pub(super) fn commit_by(worker: WorkerId, base: u64) -> Event {
    let contribution = Contribution {
        num_samples: 1,
        local_norm: 1.0,
        norm: 0.0,
        base,
        loss: None,
        bytes: 1,
        reused_bytes: None,
        metrics: Default::default(),
    };
    Event::Commit { worker, contribution }
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

#[test]
fn the_end_of_the_pause_is_told_even_if_a_worker_asks_first() {
    let mut state = RoundState::new(Rules { pause_s: 5.0, ..rules(2) }, 0, vec![], 0.0);
    for worker in 0..2 {
        state.step(offer(worker as u64, worker, 0), 0.0);
        state.step(commit(worker), 0.0);
    }
    state.step(Event::ModelReady, 0.0);
    assert_eq!(state.ask(&id(0), 4.0), Decision::Wait);
    // A message that comes when the tick is due is handled before it.
    assert_eq!(state.ask(&id(1), 5.0), Decision::Train { deadline_s: None });
    assert_eq!(state.next_wake(5.0), Some(5.0));
    assert_eq!(state.step(Event::Tick, 5.0), [Effect::Invite], "worker 0 waits");
}

#[test]
fn a_chosen_worker_does_not_lose_its_place_by_the_pause() {
    let rules = Rules { pause_s: 100.0, task_timeout_s: 60.0, sample: Some(1), ..rules(1) };
    let mut state = RoundState::new(rules, 0, vec![], 0.0);
    assert_eq!(state.ask(&id(0), 0.0), Decision::Train { deadline_s: None });
    state.step(offer(1, 0, 0), 0.0);
    state.step(commit(0), 0.0);
    state.step(Event::ModelReady, 0.0);
    // Nobody else has been heard of: worker 0 is drawn, and has nothing to do for 100 s.
    assert_eq!(state.ask(&id(1), 90.0), Decision::Wait);
    assert_eq!(state.step(Event::Tick, 100.0), [Effect::Invite]);
    assert_eq!(state.ask(&id(1), 100.0), Decision::Wait);
    assert_eq!(state.ask(&id(0), 100.0), Decision::Train { deadline_s: None });
    assert_eq!(state.ask(&id(1), 161.0), Decision::Train { deadline_s: None }, "it is silent now");
}
