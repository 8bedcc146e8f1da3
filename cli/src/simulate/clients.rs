//! The virtual clients: names, samples, speed, and state carried from round to round.

use super::{SimulateArgs, attack::factor_of, network::Hardware, store::CarriedStore};
use crate::federation::worker_id;
use fl_app::SettingError;
use fl_datasets::{Dataset, Purpose, seeded_rng};
use fl_protocol::WorkerId;
use fl_worker::{ClientMemory, ClientState, Plan, Work};
use rand::RngExt;
use std::{
    collections::HashMap,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Memory for the state that clients carry, in bytes; the rest is kept in a file.
const CARRIED_BYTES: usize = 96_000_000;

/// All clients of a simulation.
pub struct Clients {
    names: Vec<WorkerId>,
    by_name: HashMap<WorkerId, usize>,
    samples: Vec<Vec<u32>>,
    /// Samples that each evaluates models on.
    held_out: Vec<Vec<u32>>,
    hardware: Vec<Hardware>,
    factors: Vec<Option<f32>>,
    store: Mutex<CarriedStore>,
    seed: u64,
    uneven: Option<(u32, u32)>,
    dropout: f64,
}

impl Clients {
    /// Divides the data among the clients as `fl run` does among its workers.
    ///
    /// # Errors
    /// If there are more clients than samples.
    pub fn new(args: &SimulateArgs, data: &Dataset, parameters: usize) -> anyhow::Result<Self> {
        let (count, seed) = (args.clients, args.federation.seed);
        let samples = args.federation.partition.split(&data.strata(), count, seed);
        if samples.iter().any(Vec::is_empty) {
            let reason = format!("{} has only {} samples, use fewer clients", data.name, data.train.len());
            return Err(SettingError::new("--clients", count, reason).into());
        }
        let names = (0..count).map(|i| worker_id(i).parse()).collect::<Result<Vec<WorkerId>, String>>();
        let names = names.map_err(anyhow::Error::msg)?;
        let hardware =
            |(index, name): (usize, &WorkerId)| Hardware::of(&args.network, seed, index, name.as_str());
        let share = args.federation.held_out();
        let (samples, held_out) =
            names.iter().zip(samples).map(|(name, own)| fl_worker::hold_out(own, share, seed, name)).unzip();
        Ok(Self {
            held_out,
            by_name: names.iter().enumerate().map(|(index, name)| (name.clone(), index)).collect(),
            samples,
            hardware: names.iter().enumerate().map(hardware).collect(),
            factors: (0..count).map(|index| factor_of(&args.attack, index)).collect(),
            store: Mutex::new(CarriedStore::new(
                parameters,
                CARRIED_BYTES,
                &args.federation.out.join("carried.tmp"),
            )),
            seed,
            uneven: args.uneven.map(|uneven| (uneven.least, uneven.most)),
            dropout: args.network.dropout,
            names,
        })
    }

    /// Number of clients.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// The name of a client.
    pub fn name(&self, client: usize) -> &WorkerId {
        &self.names[client]
    }

    /// The client with that name.
    pub fn of_name(&self, name: &WorkerId) -> usize {
        self.by_name[name]
    }

    /// Its virtual computer and link.
    pub fn hardware(&self, client: usize) -> &Hardware {
        &self.hardware[client]
    }

    /// The factor on its updates, if it is hostile.
    pub fn factor(&self, client: usize) -> Option<f32> {
        self.factors[client]
    }

    /// Samples that it owns.
    pub fn num_samples(&self, client: usize) -> usize {
        self.samples[client].len()
    }

    /// Whether it drops out in its `attempt`-th try of a round.
    pub fn vanishes(&self, client: usize, round: u64, attempt: u64) -> bool {
        let mut rng =
            seeded_rng(self.seed ^ (attempt << 32), self.names[client].as_str(), round, Purpose::Dropout);
        self.dropout > 0.0 && rng.random::<f64>() < self.dropout
    }

    /// The plan of a client in a round: the common one, or a multiple of its work.
    pub fn plan(&self, common: &Plan, client: usize, round: u64) -> Plan {
        let mut plan = *common;
        if let Some((least, most)) = self.uneven {
            let mut rng = seeded_rng(self.seed, self.names[client].as_str(), round, Purpose::Work);
            let times = rng.random_range(least..=most);
            plan.work = match plan.work {
                Work::Steps(steps) => Work::Steps(steps.saturating_mul(times)),
                Work::Epochs(epochs) => Work::Epochs(epochs.saturating_mul(times)),
            };
        }
        let samples = plan.samples(self.num_samples(client));
        plan.compute_factor = Some(self.hardware[client].compute_s(samples));
        plan
    }

    /// A client with a copy of its carried state.
    ///
    /// # Errors
    /// If the store's file cannot be read.
    pub fn state(&self, client: usize) -> io::Result<ClientState> {
        Ok(ClientState {
            worker_id: self.names[client].clone(),
            seed: self.seed,
            indices: self.samples[client].clone(),
            held_out: Vec::new(),
            memory: self.store().get(client)?,
        })
    }

    /// A client that evaluates models, without what it carries.
    pub fn evaluator(&self, client: usize) -> ClientState {
        ClientState {
            worker_id: self.names[client].clone(),
            seed: self.seed,
            indices: Vec::new(),
            held_out: self.held_out[client].clone(),
            memory: ClientMemory::default(),
        }
    }

    /// Keeps a client's state after its update was accepted.
    ///
    /// # Errors
    /// If the store's file cannot be written.
    pub fn settle(&self, client: usize, carried: ClientMemory) -> io::Result<()> {
        self.store().put(client, carried)
    }

    fn store(&self) -> MutexGuard<'_, CarriedStore> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
