//! The task that owns the round. Handlers send it messages and wait for the answer; it does no I/O
//! and no work that takes time.

use super::{
    closing,
    events::MasterEvent,
    handle::{Admission, Inbox, Message, Refused},
    job::{Job, Published},
};
use crate::federation::{
    Global,
    round::{ClosedRound, Contribution, Effect, Event, OfferId, Refusal, RoundState},
};
use fl_protocol::{HistoryRecord, UpdateAck, WorkerId, WorkerStatus};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::sync::{oneshot, watch};
use tracing::{debug, info};

/// Least seconds between two lines about closed rounds: fast rounds must not fill a disk with lines.
const ROUND_LINE_EVERY_S: f64 = 5.0;
/// The first rounds have a line each: someone has just started the master and looks.
const FIRST_ROUNDS: u64 = 3;
/// Seconds that a round waits for updates before the log says what it waits for, and between two such lines.
const WAIT_LINE_EVERY_S: f64 = 60.0;

/// Owns the round.
pub(crate) struct Actor {
    state: RoundState,
    job: Arc<Job>,
    published: watch::Sender<Published>,
    next_offer: OfferId,
    offers: HashMap<OfferId, Offered>,
    /// The update that closed the round is answered once the next model is there.
    closer: Option<oneshot::Sender<UpdateAck>>,
    round_lines: RoundLines,
    /// When the log says next what the round waits for.
    wait_line_at: f64,
}

/// An offer that waits for its answer.
struct Offered {
    worker: WorkerId,
    /// The round that the update was trained from.
    base: u64,
    reply: oneshot::Sender<Admission>,
}

/// Rounds that were closed since the last line about them.
#[derive(Debug, Default)]
struct RoundLines {
    last_at: f64,
    unsaid: u64,
}

impl Actor {
    pub(crate) fn new(state: RoundState, job: Arc<Job>, published: watch::Sender<Published>) -> Self {
        let wait_line_at = job.host.clock.now() + WAIT_LINE_EVERY_S;
        Self {
            state,
            job,
            published,
            next_offer: 0,
            offers: HashMap::new(),
            closer: None,
            round_lines: RoundLines::default(),
            wait_line_at,
        }
    }

    /// Runs until the job's handle is dropped or `stop` resolves.
    pub(crate) async fn run(mut self, inbox: Inbox, stop: impl Future<Output = ()>) {
        let mut inbox = inbox.0;
        tokio::pin!(stop);
        // What a replay left may already suffice to close.
        self.step(Event::Tick);
        loop {
            let now = self.job.host.clock.now();
            let wake = self.state.next_wake(now).map_or(self.wait_line_at, |at| at.min(self.wait_line_at));
            let tick = tokio::time::sleep(Duration::from_secs_f64((wake - now).clamp(0.0, 3600.0)));
            tokio::select! {
                biased;
                () = &mut stop => return,
                message = inbox.recv() => match message {
                    Some(message) => self.handle(message),
                    None => return,
                },
                () = tick => {
                    self.step(Event::Tick);
                    self.say_what_is_waited_for();
                },
            }
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Offer { worker, round, reply } => {
                self.next_offer += 1;
                let offered = Offered { worker: worker.clone(), base: round, reply };
                self.offers.insert(self.next_offer, offered);
                self.step(Event::Offer { id: self.next_offer, worker, round });
            }
            Message::Abort { worker } => {
                self.step(Event::Abort { worker });
            }
            Message::Commit { worker, contribution, status, reply } => {
                self.accept(worker, contribution, status, reply);
            }
            Message::Ask { worker, reply } => {
                let now = self.job.host.clock.now();
                let decision = self.state.ask(&worker, now);
                self.job.view().heard_of(&worker, now);
                let _ = reply.send((self.state.round(), decision));
            }
            Message::Closed { global, record } => self.announce(&global, record),
        }
    }

    fn accept(
        &mut self,
        worker: WorkerId,
        contribution: Contribution,
        status: WorkerStatus,
        reply: oneshot::Sender<UpdateAck>,
    ) {
        let round = self.state.round();
        self.job.metrics.accepted(&worker, &status);
        if let Some(reused) = contribution.reused_bytes {
            self.job.metrics.reused(reused.saturating_sub(contribution.bytes));
        }
        self.job.view().accepted(worker.clone(), status);
        let closes = self.step(Event::Commit { worker: worker.clone(), contribution });
        let pending_updates = self.state.accepted() as u64;
        self.job.metrics.pending_updates.set(pending_updates as i64);
        debug!(round, %worker, pending_updates, "update accepted");
        self.job.publish(MasterEvent::UpdateAccepted { round, worker, pending_updates });
        if closes {
            self.closer = Some(reply);
        } else {
            let _ = reply.send(ack(round, false));
        }
    }

    /// Moves the round on; true if that closes it.
    fn step(&mut self, event: Event) -> bool {
        let now = self.job.host.clock.now();
        let mut closes = false;
        for effect in self.state.step(event, now) {
            match effect {
                Effect::Admit(id) => self.answer(id, None),
                Effect::Refuse(id, refusal) => self.answer(id, Some(refusal)),
                Effect::Close => {
                    closes = true;
                    let closed = ClosedRound::of(&self.state, now, self.job.take_bytes_down());
                    tokio::spawn(closing::close(self.job.clone(), closed));
                }
                Effect::Invite => self.job.invite(),
            }
        }
        closes
    }

    fn answer(&mut self, id: OfferId, refusal: Option<Refusal>) {
        let Some(Offered { worker, base, reply }) = self.offers.remove(&id) else { return };
        let global_round = self.state.round();
        let answer = match refusal {
            None => Admission::Admitted(self.job.actor.place(worker, global_round)),
            Some(refusal) => {
                let is_out = refusal == Refusal::Duplicate && !self.state.has_accepted(&worker, base);
                Admission::Refused(Refused { refusal, global_round, is_out })
            }
        };
        // Nobody may wait for it any more: the place in it is given back then.
        let _ = reply.send(answer);
    }

    /// The next model is there: shows it, opens its round, answers who waited for it.
    fn announce(&mut self, global: &Arc<Global>, record: HistoryRecord) {
        let job = self.job.clone();
        let round = global.round;
        {
            let mut view = job.view();
            view.round_closed(job.host.clock.now());
            view.record(record.clone());
        }
        job.metrics.pending_updates.set(0);
        job.metrics.global_round.set(round as i64);
        job.metrics.round_seconds.observe(record.duration_s);
        // The new model is seen before the answers that speak of it.
        let finished = self.state.finishes_with(round);
        self.published.send_replace(Published { global: global.clone(), finished });
        self.say_closed(&record, finished);
        self.step(Event::ModelReady);
        if let Some(closer) = self.closer.take() {
            let _ = closer.send(ack(round, true));
        }
        job.publish(MasterEvent::RoundClosed { record: record.clone() });
        job.evaluate(record, global, finished);
    }

    /// Logs a closed round: each at debug, and at info no more than a line every few seconds.
    fn say_closed(&mut self, record: &HistoryRecord, finished: bool) {
        let now = self.job.host.clock.now();
        self.wait_line_at = now + WAIT_LINE_EVERY_S;
        let round = record.round;
        let (participants, update_bytes) = (record.participants, record.bytes_up);
        let duration_ms = (record.duration_s * 1e3) as u64;
        let lines = &mut self.round_lines;
        if round <= FIRST_ROUNDS || finished || now - lines.last_at >= ROUND_LINE_EVERY_S {
            let rounds_since_last_line = lines.unsaid + 1;
            *lines = RoundLines { last_at: now, unsaid: 0 };
            info!(round, participants, duration_ms, update_bytes, rounds_since_last_line, "round closed");
        } else {
            lines.unsaid += 1;
            debug!(round, participants, duration_ms, update_bytes, "round closed");
        }
    }

    fn say_what_is_waited_for(&mut self) {
        let now = self.job.host.clock.now();
        if now < self.wait_line_at {
            return;
        }
        self.wait_line_at = now + WAIT_LINE_EVERY_S;
        if let Some(waiting) = self.job.waiting() {
            info!(round = self.state.round(), "{}", waiting.reason);
        }
    }
}

fn ack(global_round: u64, aggregated: bool) -> UpdateAck {
    UpdateAck { status: "ok".to_owned(), aggregated, global_round, duplicate: false }
}
