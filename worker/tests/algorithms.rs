//! Every strategy and client algorithm against `examples/reference_algorithms.py`, which is written in
//! numpy from the papers: the same problem, round by round, to 1e-5.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use bytes::Bytes;
use clap::Parser;
use fl_datasets::{Dataset, DatasetSpec, Part};
use fl_master::{
    Core, Snapshot,
    round::{ClosedRound, Contribution},
};
use fl_model::{GlobalModel, ModelSpec};
use fl_protocol::{TaskBody, WorkerId};
use fl_worker::{Args, ClientMemory, ClientState, Config, Engine, Plan, Sent, StartingPoint};
use std::{collections::BTreeMap, ops::ControlFlow, sync::Arc};

const CLIENTS: usize = 5;
const ROUNDS: usize = 20;
/// Which parameters the golden file keeps.
const EVERY: usize = 41;

type Golden = BTreeMap<String, Vec<Vec<f64>>>;

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/algorithms.json")).unwrap()
}

/// The reference's problem, and the machinery under test.
struct Problem {
    engine: Engine,
    configs: Vec<Config>,
    clients: Vec<ClientState>,
    core: Core,
    /// Updates of the open round.
    updates: Vec<(WorkerId, Contribution)>,
}

impl Problem {
    fn new(strategy: &str, flags: &[&str], lazy: f64) -> Self {
        let data: Arc<Dataset> =
            Arc::new(fl_datasets::load(&DatasetSpec::Digits, None, Part::Train).unwrap());
        let spec = ModelSpec::classifier("softmax", data.input_shape(), data.num_classes(), 0).unwrap();
        let layout = spec.layout();
        let parameters = vec![0.0; layout.parameters()];
        let normalization = data.normalization.clone();
        let global = GlobalModel {
            round: 0,
            network: spec.into(),
            normalization,
            names: data.names.clone(),
            parameters,
            buffers: fl_model::Buffers::default(),
        };
        let configs: Vec<Config> = (0..CLIENTS)
            .map(|k| {
                let own = [format!("--worker-id=w{k}"), format!("--local-steps={}", 2 + k)];
                let common = ["fl-worker", "--lr=0.1", "--batch-size=1000", "--quantizer=none"];
                let args = common.iter().chain(flags).map(|arg| (*arg).to_owned()).chain(own);
                Args::parse_from(args).check().unwrap()
            })
            .collect();
        let samples = data.train.len() as u32;
        let clients = (0..CLIENTS)
            .map(|k| ClientState {
                worker_id: configs[k].worker_id.clone(),
                seed: 1,
                indices: (k as u32..samples).step_by(CLIENTS).take(40 + 30 * k).collect(),
                held_out: Vec::new(),
                memory: ClientMemory::default(),
            })
            .collect();
        let master = fl_master::Args::parse_from([
            "fl-master".to_owned(),
            format!("--strategy={strategy}"),
            format!("--lazy={lazy}"),
            format!("--agg-min-clients={}", if strategy.starts_with("fedbuff") { 2 } else { CLIENTS }),
        ]);
        let settings = master.check().unwrap().aggregation;
        let snapshot = Snapshot::initial(global.to_safetensors().unwrap().into());
        Self {
            engine: Engine::new(&configs[0], data, &global).unwrap(),
            core: Core::new(layout, settings, snapshot).unwrap(),
            configs,
            clients,
            updates: Vec::new(),
        }
    }

    fn model(&self) -> GlobalModel {
        GlobalModel::from_safetensors(&self.core.global().bytes).unwrap()
    }

    /// Trains client `k` from `model` and takes its update into the open round. The control variate is the
    /// newest one.
    fn hand_in(&mut self, k: usize, model: &GlobalModel) {
        let global = self.core.global();
        let control = global.control.as_ref().map(|file| GlobalModel::from_safetensors(file).unwrap());
        let from = StartingPoint {
            round: model.round,
            parameters: &model.parameters,
            control: control.as_ref().map(|control| control.parameters.as_slice()),
        };
        let task = TaskBody { lazy_below: global.lazy_below, ..TaskBody::train(model.round) };
        let plan = Plan::new(&self.configs[k], &task).unwrap();
        let trained = self.engine.train(&self.clients[k], &from, &plan, || ControlFlow::Continue(()));
        let update = trained.unwrap().unwrap();
        let (body, sent): (Bytes, _) = match update.notice {
            Some(notice) => (notice, Sent::Notice),
            None => (update.body, Sent::Update),
        };
        self.engine.settle(&mut self.clients[k], sent);
        let added = self.core.add(&body, body.len() as u64).unwrap();
        self.core.confirm(&added.meta, &body);
        self.updates.push((added.meta.worker_id, added.contribution));
    }

    fn close(&mut self) {
        let round = self.core.global().round;
        let closed = ClosedRound::new(round, std::mem::take(&mut self.updates), (0.0, 1.0), 0);
        self.core.close(&closed).unwrap();
    }

    /// The largest difference to the reference after this round.
    fn difference(&self, expected: &[f64]) -> f64 {
        let model = self.model();
        let kept = model.parameters.iter().step_by(EVERY);
        assert_eq!(kept.len(), expected.len());
        kept.zip(expected).map(|(found, expected)| (f64::from(*found) - expected).abs()).fold(0.0, f64::max)
    }
}

/// The largest difference over 20 synchronous rounds. Updates come in another order in every round.
fn synchronous(strategy: &str, flags: &[&str], lazy: f64, expected: &[Vec<f64>]) -> f64 {
    let mut problem = Problem::new(strategy, flags, lazy);
    let mut worst: f64 = 0.0;
    for (round, expected) in expected.iter().enumerate() {
        let model = problem.model();
        for turn in 0..CLIENTS {
            problem.hand_in((turn * 3 + round) % CLIENTS, &model);
        }
        problem.close();
        worst = worst.max(problem.difference(expected));
    }
    worst
}

/// The same for the reference's order of arrivals.
fn asynchronous(expected: &[Vec<f64>]) -> f64 {
    let mut problem = Problem::new("fedbuff:2", &[], 0.0);
    let mut starts = vec![problem.model(); CLIENTS];
    let (mut worst, mut open) = (0.0f64, 0);
    for arrival in 0.. {
        let k = if arrival % 2 == 0 { 0 } else { 1 + (arrival / 2) % (CLIENTS - 1) };
        problem.hand_in(k, &starts[k].clone());
        if problem.updates.len() == 2 {
            problem.close();
            worst = worst.max(problem.difference(&expected[open]));
            open += 1;
        }
        starts[k] = problem.model();
        if open == ROUNDS {
            break;
        }
    }
    worst
}

#[test]
fn every_algorithm_gives_the_numbers_of_the_reference() {
    let mut failed = Vec::new();
    for (name, expected) in golden() {
        assert_eq!(expected.len(), ROUNDS);
        let (strategy, variant) = name.split_once(' ').unwrap_or((&name, ""));
        let lazy = if variant == "lazy" { 0.8 } else { 0.0 };
        let flags: &[&str] = match variant {
            "" | "lazy" => &[],
            "mu" => &["--mu=0.5"],
            "momentum" => &["--momentum=0.5"],
            "clip" => &["--clip-norm=0.5"],
            "cosine" => &["--lr-schedule=cosine:20"],
            other => panic!("the golden file knows a variant `{other}` that this test does not"),
        };
        let worst = match strategy.starts_with("fedbuff") {
            true => asynchronous(&expected),
            false => synchronous(strategy, flags, lazy, &expected),
        };
        println!("{name}: {worst:.1e}");
        if worst.is_nan() || worst > 1e-5 {
            failed.push(format!("{name}: {worst:.1e}"));
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn the_reference_is_not_met_by_accident() {
    let golden = golden();
    assert!(synchronous("fedavg", &[], 0.0, &golden["fednova"]) > 1e-3);
    assert!(synchronous("fedavg", &[], 0.0, &golden["fedavg mu"]) > 1e-4);
    assert!(synchronous("fedavg", &[], 0.0, &golden["fedavg lazy"]) > 1e-3);
    assert!(synchronous("krum:1", &[], 0.0, &golden["multikrum:1:3"]) > 1e-3);
}
