//! Rounds with the real core and the real recovery on a store that loses what was not synced, crashed at every
//! point of the protocol: nothing that was acknowledged is lost, no model that was seen changes, and every model
//! is, to the byte, that of a federation without a crash.
//!
//! `FL_LOSING_CRASHES` makes it longer, `FL_SEED` repeats a run.

use super::recover;
use crate::{
    Config,
    federation::{
        Added, Core, Snapshot,
        round::{ClosedRound, Contribution, Effect, Event, Refusal, RoundState},
    },
    source::ModelSource,
    store::{
        Closed, Keeper, Record, RecordMeta, RoundLog, Store,
        memory::{Memory, MemorySync, Random},
    },
};
use bytes::Bytes;
use fl_protocol::{Header, UpdateMeta, WorkerId, update, update::Encoded};
use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

const WORKERS: u64 = 4;
/// A round closes with so many updates, or earlier at its deadline.
const TARGET: usize = 3;
/// Crashes of one store.
const CRASHES: u64 = 50;

/// What is done wrong, to see that the test notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    LeaveOut(MemorySync),
    /// An update is acknowledged before it is durable.
    AcknowledgeBeforeSync,
    /// The next model is shown before it is durable that the round is closed.
    PublishBeforeClose,
}

const MISTAKES: [Mistake; 5] = [
    Mistake::LeaveOut(MemorySync::Replay),
    Mistake::LeaveOut(MemorySync::Log),
    Mistake::LeaveOut(MemorySync::Snapshot),
    Mistake::AcknowledgeBeforeSync,
    Mistake::PublishBeforeClose,
];

/// The end of a process.
enum End {
    Crash,
    /// Something was found that must not be.
    Fault(String),
}

impl From<anyhow::Error> for End {
    fn from(error: anyhow::Error) -> Self {
        Self::Fault(format!("{error:#}"))
    }
}

/// What outlives the processes.
struct World<'a> {
    config: Config,
    source: &'a ModelSource,
    memory: Memory,
    random: Random,
    mistake: Option<Mistake>,
    /// Workers that were told that their update of a round counts.
    acknowledged: BTreeMap<u64, BTreeSet<WorkerId>>,
    /// Models that were seen.
    published: BTreeMap<u64, Bytes>,
    /// The federation without a crash.
    reference: Core,
    clock: f64,
}

/// One life of the master.
struct Process {
    core: Core,
    state: RoundState,
    log: RoundLog,
    keeper: Keeper,
    /// Offers that wait for the outcome of others; their workers have given up meanwhile.
    parked: BTreeMap<u64, WorkerId>,
    next_offer: u64,
}

impl<'a> World<'a> {
    fn new(source: &'a ModelSource, seed: u64, mistake: Option<Mistake>) -> Self {
        let mut random = Random(seed);
        let mut config = Config::default();
        config.model.model = "softmax".into();
        config.round.min_clients = TARGET;
        config.round.deadline_s = Some(5.0);
        config.round.min_at_deadline = 1;
        config.round.pause_s = 0.0;
        config.store.keep_rounds = 2 + random.below(3);
        config.aggregation.strategy = ["fedavg", "fedavgm", "median"][random.below(3)].parse().unwrap();
        let memory = Memory::new(random.next());
        if let Some(Mistake::LeaveOut(sync)) = mistake {
            memory.leave_out(Some(sync));
        }
        let initial = Snapshot::initial(source.initial(config.seed).unwrap());
        let reference = Core::new(source.layout.clone(), config.aggregation.clone(), initial).unwrap();
        let (acknowledged, published) = (BTreeMap::new(), BTreeMap::new());
        Self { config, source, memory, random, mistake, acknowledged, published, reference, clock: 0.0 }
    }

    /// A crash can come here.
    fn point(&mut self) -> Result<(), End> {
        self.clock += self.random.below(1000) as f64 / 1e3;
        match self.random.below(15) {
            0 => Err(End::Crash),
            _ => Ok(()),
        }
    }

    fn acknowledge(&mut self, round: u64, worker: &WorkerId) {
        self.acknowledged.entry(round).or_default().insert(worker.clone());
    }

    /// Recovers, and compares what is there with what has to be.
    fn start(&mut self) -> Result<Process, End> {
        let fingerprint = self.source.layout.fingerprint();
        let (log, snapshots) = self.memory.parts(fingerprint);
        let mut store = Store::new(Box::new(log), Arc::new(snapshots), fingerprint);
        let mut remade = Vec::new();
        let keep = |_: &Store, snapshot, record| remade.push((snapshot, record));
        let recovered = recover::recover(&self.config, self.source, &mut store, self.clock, keep)?;
        let (core, state) = (recovered.core, recovered.state);
        for (snapshot, _) in &remade {
            self.check_closed(snapshot)?;
            self.publish(snapshot.round, &snapshot.model)?;
        }
        if !state.is_open() {
            return Err(End::Fault("the recovered round is not open: nobody would close it".to_owned()));
        }
        let global = core.global();
        if self.reference.global().round != global.round {
            return Err(End::Fault(format!(
                "round {} was reached, round {} is recovered",
                self.reference.global().round,
                global.round
            )));
        }
        self.publish(global.round, &global.bytes)?;
        let pending: BTreeSet<WorkerId> = state.contributions().map(|(worker, _)| worker.clone()).collect();
        self.check_acknowledged(global.round, &pending)?;
        let (log, snapshots) = self.memory.parts(fingerprint);
        let keeper = Keeper::new(Arc::new(snapshots), fingerprint, self.config.store.keep_rounds);
        for (snapshot, record) in remade {
            self.point()?;
            keeper.write(&snapshot).map_err(anyhow::Error::from)?;
            keeper.record(&record);
        }
        let mut log = RoundLog::new(Box::new(log));
        log.open(global.round, settings(&core));
        Ok(Process { core, state, log, keeper, parked: BTreeMap::new(), next_offer: 0 })
    }

    fn publish(&mut self, round: u64, model: &Bytes) -> Result<(), End> {
        let known = self.published.entry(round).or_insert_with(|| model.clone());
        match known == model {
            true => Ok(()),
            false => Err(End::Fault(format!("another model of round {round} has been seen before"))),
        }
    }

    fn check_acknowledged(&self, round: u64, workers: &BTreeSet<WorkerId>) -> Result<(), End> {
        match self.acknowledged.get(&round).and_then(|all| all.difference(workers).next()) {
            Some(worker) => Err(End::Fault(format!("the update of {worker} in round {round} is lost"))),
            None => Ok(()),
        }
    }

    /// A round is closed: the reference makes its model of the same updates, unless it has.
    fn check_closed(&mut self, snapshot: &Snapshot) -> Result<(), End> {
        let round = snapshot.round - 1;
        self.check_acknowledged(round, &snapshot.participants.iter().cloned().collect())?;
        if self.reference.global().round == round {
            let contributions: Vec<(WorkerId, Contribution)> = snapshot
                .participants
                .iter()
                .rev()
                .map(|worker| {
                    let body = body(self.source, worker, round);
                    let added = self.reference.add(&body, body.len() as u64).unwrap();
                    self.reference.confirm(&added.meta, &body);
                    (worker.clone(), added.contribution)
                })
                .collect();
            self.reference.close(&ClosedRound::new(round, contributions, (0.0, 0.0), 0)).unwrap();
        }
        let reference = self.reference.global();
        match reference.round != snapshot.round || reference.bytes == snapshot.model {
            true => Ok(()),
            false => Err(End::Fault(format!("the model of round {} is another one", snapshot.round))),
        }
    }
}

impl Process {
    fn run(&mut self, world: &mut World<'_>) -> Result<(), End> {
        loop {
            world.point()?;
            if world.random.below(3) == 0 {
                world.clock += 6.0;
            }
            let effects = self.state.step(Event::Tick, world.clock);
            self.react(world, effects)?;
            let round = self.state.round();
            let mut group = Vec::new();
            for _ in 0..=world.random.below(3) {
                let worker: WorkerId = format!("w{}", world.random.below(WORKERS as usize)).parse().unwrap();
                self.next_offer += 1;
                let id = self.next_offer;
                match self.state.step(Event::Offer { id, worker: worker.clone(), round }, world.clock)[..] {
                    [Effect::Admit(_)] => group.push(self.add(world, &worker, round)),
                    // Whoever sends again is told that the update counts.
                    [Effect::Refuse(_, Refusal::Duplicate)] => world.acknowledge(round, &worker),
                    _ => {
                        self.parked.insert(id, worker);
                    }
                }
            }
            self.commit(world, round, group)?;
        }
    }

    fn add(&self, world: &World<'_>, worker: &WorkerId, round: u64) -> (Added, Record) {
        let body = body(world.source, worker, round);
        let added = self.core.add(&body, body.len() as u64).unwrap();
        let meta = RecordMeta { wire_bytes: body.len() as u64, ..RecordMeta::default() };
        let record = Record::Update { meta: meta.with_clip(added.clip), body };
        (added, record)
    }

    /// Makes a group of updates durable with one sync, and acknowledges them.
    fn commit(&mut self, world: &mut World<'_>, round: u64, group: Vec<(Added, Record)>) -> Result<(), End> {
        world.point()?;
        if group.is_empty() {
            return Ok(());
        }
        if world.mistake == Some(Mistake::AcknowledgeBeforeSync) {
            group.iter().for_each(|(added, _)| world.acknowledge(round, &added.meta.worker_id));
            world.point()?;
        }
        if world.random.below(20) == 0 {
            // The end comes between the write and its sync.
            world.memory.interrupt_syncs(true);
            let _ = self.log.commit(round, group.iter().map(|(_, record)| record));
            world.memory.interrupt_syncs(false);
            return Err(End::Crash);
        }
        world.memory.set_full(world.mistake.is_none() && world.random.below(10) == 0);
        let durable = self.log.commit(round, group.iter().map(|(_, record)| record)).is_ok();
        world.memory.set_full(false);
        world.point()?;
        for (added, record) in group {
            let Record::Update { body, .. } = record else { unreachable!("updates") };
            let (meta, contribution) = (added.meta, added.contribution);
            let worker = meta.worker_id.clone();
            let event = if durable {
                self.core.confirm(&meta, &body);
                Event::Commit { worker: worker.clone(), contribution }
            } else {
                self.core.remove(&Header::read(&body).unwrap(), &body);
                Event::Abort { worker: worker.clone() }
            };
            let effects = self.state.step(event, world.clock);
            if durable {
                world.acknowledge(round, &worker);
            }
            self.react(world, effects)?;
        }
        Ok(())
    }

    fn react(&mut self, world: &mut World<'_>, effects: Vec<Effect>) -> Result<(), End> {
        for effect in effects {
            match effect {
                Effect::Close => self.close(world)?,
                Effect::Admit(id) => {
                    if let Some(worker) = self.parked.remove(&id) {
                        let more = self.state.step(Event::Abort { worker }, world.clock);
                        self.react(world, more)?;
                    }
                }
                Effect::Refuse(..) | Effect::Invite => {}
            }
        }
        Ok(())
    }

    fn close(&mut self, world: &mut World<'_>) -> Result<(), End> {
        let closed = ClosedRound::of(&self.state, world.clock, 0);
        let record = Record::Closed(Closed {
            updates: closed.num_updates() as u64,
            opened_ts: closed.opened_ts,
            closed_ts: closed.closed_ts,
            bytes_down: closed.bytes_down,
        });
        world.point()?;
        let is_early = world.mistake == Some(Mistake::PublishBeforeClose);
        if !is_early {
            self.log.commit(closed.round, [&record]).map_err(anyhow::Error::from)?;
            world.point()?;
        }
        let outcome = self.core.close(&closed).map_err(anyhow::Error::from)?;
        let global = outcome.global;
        if is_early {
            world.publish(global.round, &global.bytes)?;
            world.point()?;
            self.log.commit(closed.round, [&record]).map_err(anyhow::Error::from)?;
        }
        world.check_closed(&outcome.snapshot)?;
        world.publish(global.round, &global.bytes)?;
        world.point()?;
        self.log.open(global.round, settings(&self.core));
        let effects = self.state.step(Event::ModelReady, world.clock);
        self.react(world, effects)?;
        // The checkpoint may lag behind by a round, as it does on a slow disk.
        world.point()?;
        if world.random.below(4) > 0 {
            self.keeper.write(&outcome.snapshot).map_err(anyhow::Error::from)?;
            world.point()?;
            self.keeper.record(&outcome.record);
            let needed = self.keeper.prune(global.round).map_err(anyhow::Error::from)?;
            world.point()?;
            self.log.remove_before(needed).map_err(anyhow::Error::from)?;
        }
        world.point()
    }
}

fn settings(core: &Core) -> Bytes {
    serde_json::to_vec(&core.settings()).unwrap().into()
}

/// The update that a worker sends in a round, whenever it sends it.
fn body(source: &ModelSource, worker: &WorkerId, round: u64) -> Bytes {
    let seed = u64::from(worker.as_str().as_bytes()[1]) * 7919 + round * 104_729;
    let mut random = Random(seed);
    let delta: Vec<f32> =
        (0..source.layout.parameters()).map(|_| random.below(2001) as f32 / 1e5 - 0.01).collect();
    let meta = UpdateMeta {
        worker_id: worker.clone(),
        round,
        num_samples: 10 + seed % 7,
        loss: Some(0.5),
        accuracy: None,
        compute_factor: None,
        local_steps: None,
        local_norm: None,
        reuse: None,
        metrics: Default::default(),
    };
    let tensors: Vec<_> =
        source.layout.tensors().iter().map(|t| Encoded::F32(&delta[t.offset..t.offset + t.len])).collect();
    update::write(&meta, &source.layout, &tensors).unwrap().into()
}

/// A store's life; gives what was lost, or the rounds and the acknowledged updates.
fn live(source: &ModelSource, seed: u64, mistake: Option<Mistake>) -> Result<(u64, usize), String> {
    let mut world = World::new(source, seed, mistake);
    for _ in 0..CRASHES {
        let end = match world.start() {
            Ok(mut process) => process.run(&mut world).unwrap_err(),
            Err(end) => end,
        };
        if let End::Fault(fault) = end {
            return Err(fault);
        }
        match world.random.below(3) {
            // What the process wrote is still there, and a retry is told so: it must be durable then.
            0 => world.memory.kill(),
            _ => world.memory.crash(),
        }
    }
    let acknowledged = world.acknowledged.values().map(BTreeSet::len).sum();
    Ok((world.reference.global().round, acknowledged))
}

fn source() -> ModelSource {
    let mut config = Config::default();
    config.model.model = "softmax".into();
    ModelSource::load(&config.model).unwrap()
}

/// Seeds of the stores: from `FL_SEED`, or fresh.
fn seeds() -> impl Iterator<Item = u64> {
    let fresh = || RandomState::new().hash_one(0u64);
    let seed = std::env::var("FL_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(fresh);
    println!("FL_SEED={seed}");
    (0..).map(move |k| seed.wrapping_add(k))
}

#[test]
fn nothing_acknowledged_is_lost_by_crashes() {
    let crashes = std::env::var("FL_LOSING_CRASHES").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000);
    let source = source();
    let (mut rounds, mut updates) = (0, 0);
    for seed in seeds().take((crashes / CRASHES) as usize) {
        let lived = live(&source, seed, None).unwrap_or_else(|fault| panic!("FL_SEED={seed}: {fault}"));
        rounds += lived.0;
        updates += lived.1;
    }
    println!("{crashes} crashes, {rounds} rounds, {updates} acknowledged updates");
    assert!(rounds > crashes / 10 && updates > crashes as usize / 4, "the crashes hit nothing");
}

/// The same test with a mistake: it fails.
#[test]
fn every_mistake_is_noticed() {
    let source = source();
    for mistake in MISTAKES {
        let fault = seeds().take(500).find_map(|seed| live(&source, seed, Some(mistake)).err());
        println!("{mistake:?}: {}", fault.as_deref().unwrap_or("not noticed"));
        assert!(fault.is_some(), "{mistake:?} is not noticed");
    }
}
