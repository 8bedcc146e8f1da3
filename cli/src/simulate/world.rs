//! The simulation: events in virtual time drive the master's own rules.
//!
//! A client that is asked to train does so immediately on a real core; its virtual hardware determines when its
//! update *arrives*. Training therefore runs in parallel, while events are handled in the order of the virtual
//! clock, which is the same in every run.

use super::{
    SimulateArgs,
    clients::Clients,
    server::Server,
    train::{Base, Job, Outcome, evaluate, evaluate_by_clients, parallel, train},
};
use bytes::Bytes;
use fl_master::{
    round::{ClosedRound, Contribution, Decision, Effect, Event, OfferId, RoundState, draw},
    setup,
};
use fl_protocol::HistoryRecord;
use fl_worker::{ClientMemory, Engine, Plan};
use std::{
    cmp::Ordering,
    collections::{BinaryHeap, HashMap, HashSet},
    time::Instant,
};

/// The arrival of a client's update, or the time-out of a client that dropped out.
struct Arrival {
    at: f64,
    client: usize,
    attempt: u64,
    base: u64,
    payload: Payload,
}

enum Payload {
    Counted(Contribution),
    Ready(Bytes, ClientMemory),
    Nothing,
}

/// Reversed, so that the heap pops the earliest arrival first; ties go to the client with the lower number.
impl Ord for Arrival {
    fn cmp(&self, other: &Self) -> Ordering {
        other.at.total_cmp(&self.at).then(other.client.cmp(&self.client))
    }
}

impl PartialOrd for Arrival {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Arrival {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Arrival {}

/// How clients are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// `asked` clients at the beginning of every round.
    Rounds,
    /// `asked` clients train at any time; when one is done, a free one starts from the newest model.
    Asynchronous,
}

/// A federation in virtual time.
pub struct World {
    server: Server,
    state: RoundState,
    clients: Clients,
    engines: Vec<Engine>,
    /// The settings that all clients share.
    common: fl_worker::Config,
    base: Base,
    mode: Mode,
    /// Number of clients asked at the same time.
    asked: usize,
    timeout_s: f64,
    eval_every: u64,
    now: f64,
    arrivals: BinaryHeap<Arrival>,
    /// Clients that train, or that dropped out and have not timed out yet.
    busy: HashSet<usize>,
    /// Clients that were asked in this round.
    tried: HashSet<usize>,
    offers: HashMap<OfferId, (usize, Bytes, ClientMemory)>,
    next_offer: OfferId,
    bytes_down: u64,
    finished: Vec<HistoryRecord>,
}

impl World {
    /// Builds the simulation from its parts.
    pub fn new(
        args: &SimulateArgs,
        server: Server,
        clients: Clients,
        engines: Vec<Engine>,
        common: fl_worker::Config,
    ) -> anyhow::Result<Self> {
        let asynchronous = server.config.aggregation.strategy.is_asynchronous();
        Ok(Self {
            state: server.rounds(),
            base: Base::of(&server.global(), common.updates.download)?,
            mode: if asynchronous { Mode::Asynchronous } else { Mode::Rounds },
            asked: args.asked(),
            timeout_s: args.network.task_timeout_s,
            eval_every: args.eval_every,
            server,
            clients,
            engines,
            common,
            now: 0.0,
            arrivals: BinaryHeap::new(),
            busy: HashSet::new(),
            tried: HashSet::new(),
            offers: HashMap::new(),
            next_offer: 0,
            bytes_down: 0,
            finished: Vec::new(),
        })
    }

    /// The model's file.
    pub fn file(&self) -> Bytes {
        self.server.global().bytes.clone()
    }

    /// Parameters of the model.
    pub fn num_parameters(&self) -> usize {
        self.server.core.num_parameters()
    }

    /// Runs to the last round, or until every client's training diverges. `show` is called with the record of
    /// every round: its times are virtual, its duration is this machine's.
    ///
    /// # Errors
    /// If a file or a thread fails.
    pub fn run(
        &mut self,
        mut show: impl FnMut(&HistoryRecord) -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<HistoryRecord>> {
        let mut history = Vec::new();
        let mut started = Instant::now();
        self.invite(self.asked)?;
        while !self.state.is_finished() {
            let wake = self.state.next_wake(self.now);
            let next = self.arrivals.peek().map(|arrival| arrival.at);
            match (next, wake) {
                (None, None) => break,
                (Some(at), wake) if wake.is_none_or(|wake| at <= wake) => {
                    self.now = self.now.max(at);
                    if let Some(arrival) = self.arrivals.pop() {
                        self.arrive(arrival)?;
                    }
                }
                (_, Some(wake)) => {
                    self.now = self.now.max(wake);
                    self.step(Event::Tick)?;
                }
                (Some(_), None) => {}
            }
            for mut record in std::mem::take(&mut self.finished) {
                let is_last = self.state.finishes_with(record.round);
                if is_last || (self.eval_every > 0 && record.round.is_multiple_of(self.eval_every)) {
                    let found = evaluate(&mut self.engines, &self.base, &self.server.dataset)?;
                    record.test_accuracy = found.and_then(|found| found.accuracy);
                    record.test_loss = found.map(|found| found.loss);
                    record.test_absolute_error = found.and_then(|found| found.absolute_error);
                }
                let rules = setup::evaluation_rules(&self.server.config);
                if rules.is_due(record.round) {
                    let Self { engines, base, clients, .. } = self;
                    record.evaluation = evaluate_by_clients(engines, base, clients, &rules)?;
                }
                record.duration_s = started.elapsed().as_secs_f64();
                started = Instant::now();
                show(&record)?;
                history.push(record);
                if !is_last {
                    self.invite_next()?;
                }
            }
        }
        Ok(history)
    }

    /// Asks clients for the round that has just opened.
    fn invite_next(&mut self) -> anyhow::Result<()> {
        if self.mode == Mode::Rounds {
            self.tried.clear();
        }
        self.fill_up()
    }

    /// Asks as many clients as are missing.
    fn fill_up(&mut self) -> anyhow::Result<()> {
        match self.mode {
            Mode::Rounds => self.invite(self.asked),
            Mode::Asynchronous => self.invite(self.asked.saturating_sub(self.busy.len())),
        }
    }

    /// Asks `count` of the free clients.
    fn invite(&mut self, count: usize) -> anyhow::Result<()> {
        let rounds = self.mode == Mode::Rounds;
        let is_free = |client: &usize| !(self.busy.contains(client) || rounds && self.tried.contains(client));
        let free: Vec<usize> = (0..self.clients.len()).filter(is_free).collect();
        let chosen: Vec<usize> = if free.len() <= count {
            free
        } else {
            let names = free.iter().map(|client| self.clients.name(*client));
            let drawn = draw(self.server.config.seed, self.state.round(), names, count);
            drawn.into_iter().map(|name| self.clients.of_name(name)).collect()
        };
        self.start(chosen.into_iter().map(|client| (client, 0)).collect())
    }

    /// Trains the chosen clients from the newest model, except those to which the master gives no task.
    fn start(&mut self, chosen: Vec<(usize, u64)>) -> anyhow::Result<()> {
        let task = self.server.task();
        let common = Plan::new(&self.common, &task).map_err(anyhow::Error::msg)?;
        for engine in &mut self.engines {
            engine.set_parts(task.trainable.as_deref(), task.local_layers.as_deref())?;
        }
        let mut jobs = Vec::with_capacity(chosen.len());
        for (client, attempt) in chosen {
            let asked = self.state.ask(self.clients.name(client), self.now);
            if !matches!(asked, Decision::Train { .. }) {
                continue;
            }
            self.busy.insert(client);
            self.tried.insert(client);
            if self.clients.vanishes(client, task.round, attempt) {
                let at = self.now + self.timeout_s;
                self.arrivals.push(Arrival {
                    at,
                    client,
                    attempt,
                    base: task.round,
                    payload: Payload::Nothing,
                });
                continue;
            }
            jobs.push(Job { client, attempt, plan: self.clients.plan(&common, client, task.round) });
        }
        let round = &self.server.config.round;
        let eager =
            self.mode == Mode::Rounds && round.deadline_s.is_none() && self.asked == round.min_clients;
        let Self { engines, base, clients, server, .. } = self;
        let outcomes = parallel(engines, jobs, |engine, job| {
            train(engine, &job, base, clients, server, eager).map(|outcome| (job, outcome))
        });
        for outcome in outcomes {
            let (job, outcome) = outcome?;
            let (bytes_up, payload) = match outcome {
                Outcome::Counted(contribution) => (contribution.bytes, Payload::Counted(contribution)),
                Outcome::Ready(body, carried) => (body.len() as u64, Payload::Ready(body, carried)),
                Outcome::Diverged => (0, Payload::Nothing),
            };
            let samples = job.plan.samples(self.clients.num_samples(job.client));
            let took = self.clients.hardware(job.client).round_s(self.base.bytes, samples, bytes_up);
            self.bytes_down += self.base.bytes;
            let Job { client, attempt, .. } = job;
            self.arrivals.push(Arrival { at: self.now + took, client, attempt, base: task.round, payload });
        }
        Ok(())
    }

    fn arrive(&mut self, arrival: Arrival) -> anyhow::Result<()> {
        let Arrival { client, attempt, base, payload, .. } = arrival;
        self.busy.remove(&client);
        let worker = self.clients.name(client).clone();
        match payload {
            Payload::Counted(contribution) => {
                // Already in the sum; a round has a place for every asked client.
                self.next_offer += 1;
                self.state.step(
                    Event::Offer { id: self.next_offer, worker: worker.clone(), round: base },
                    self.now,
                );
                self.step(Event::Commit { worker, contribution })?;
            }
            Payload::Ready(body, carried) => {
                self.next_offer += 1;
                self.offers.insert(self.next_offer, (client, body, carried));
                self.step(Event::Offer { id: self.next_offer, worker, round: base })?;
            }
            Payload::Nothing => return self.replace(client, attempt, base),
        }
        match self.mode {
            Mode::Asynchronous if self.finished.is_empty() => self.fill_up(),
            _ => Ok(()),
        }
    }

    /// Replaces a client that dropped out by another, or lets it try again when no other is free.
    fn replace(&mut self, client: usize, attempt: u64, base: u64) -> anyhow::Result<()> {
        if self.mode == Mode::Asynchronous {
            return self.fill_up();
        }
        if base != self.state.round() {
            return Ok(());
        }
        let before = self.arrivals.len();
        self.invite(1)?;
        let vanished = self.clients.vanishes(client, base, attempt);
        if self.arrivals.len() == before && vanished {
            self.start(vec![(client, attempt + 1)])?;
        }
        Ok(())
    }

    /// Passes an event to the round rules and carries out their effects.
    fn step(&mut self, event: Event) -> anyhow::Result<()> {
        for effect in self.state.step(event, self.now) {
            match effect {
                Effect::Admit(id) => self.admit(id)?,
                Effect::Refuse(id, _) => drop(self.offers.remove(&id)),
                Effect::Close => {
                    let bytes_down = std::mem::take(&mut self.bytes_down);
                    let closed = ClosedRound::of(&self.state, self.now, bytes_down);
                    self.finished.push(self.server.core.close(&closed)?.record);
                    self.base = Base::of(&self.server.global(), self.common.updates.download)?;
                    self.step(Event::ModelReady)?;
                }
                // Clients are asked when a round opens or a client times out.
                Effect::Invite => {}
            }
        }
        Ok(())
    }

    fn admit(&mut self, id: OfferId) -> anyhow::Result<()> {
        let Some((client, body, carried)) = self.offers.remove(&id) else { return Ok(()) };
        let worker = self.clients.name(client).clone();
        match self.server.add(&body) {
            Some(contribution) => {
                self.clients.settle(client, carried)?;
                self.step(Event::Commit { worker, contribution })
            }
            None => self.step(Event::Abort { worker }),
        }
    }
}
