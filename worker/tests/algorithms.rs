//! Every strategy and client algorithm against `examples/reference_algorithms.py`, which is written in
//! numpy from the papers: the same problem, round by round, to 1e-5.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use clap::Parser;
use fl_datasets::{Dataset, DatasetSpec, Part};
use fl_master::{
    aggregate::{
        Collector, LastUpdates, ServerState, Totals,
        lazy::{self, Bounds},
        next_parameters,
    },
    config::AggregationConfig,
    update::Intake,
};
use fl_model::{GlobalModel, ModelSpec};
use fl_protocol::{ModelLayout, TaskBody};
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
    layout: ModelLayout,
    engine: Engine,
    configs: Vec<Config>,
    clients: Vec<ClientState>,
    aggregation: AggregationConfig,
    collector: Collector,
    lasts: LastUpdates,
    server: ServerState,
    parameters: Vec<f32>,
}

impl Problem {
    fn new(strategy: &str, flags: &[&str], lazy: f64) -> Self {
        let data: Arc<Dataset> =
            Arc::new(fl_datasets::load(&DatasetSpec::Digits, None, Part::Train).unwrap());
        let spec = ModelSpec::preset("softmax", &data.input_shape, data.num_classes, 0).unwrap();
        let layout = spec.layout();
        let parameters = vec![0.0; layout.parameters()];
        let normalization = data.normalization.clone();
        let global = GlobalModel {
            round: 0,
            spec,
            normalization,
            names: data.names.clone(),
            parameters: parameters.clone(),
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
                memory: ClientMemory::default(),
            })
            .collect();
        let master = fl_master::Args::parse_from([
            "fl-master".to_owned(),
            format!("--strategy={strategy}"),
            format!("--lazy={lazy}"),
            format!("--agg-min-clients={}", if strategy.starts_with("fedbuff") { 2 } else { CLIENTS }),
        ]);
        let aggregation = master.check().unwrap().aggregation;
        Self {
            engine: Engine::new(&configs[0], data, &global).unwrap(),
            lasts: LastUpdates::new(
                aggregation.lazy.map(|_| Bounds { max_age: 100, max_bytes: 1 << 30 }),
                BTreeMap::new(),
            ),
            collector: Collector::new(aggregation.strategy, layout.parameters()),
            aggregation,
            layout,
            configs,
            clients,
            server: ServerState::default(),
            parameters,
        }
    }

    /// Trains client `k` from `parameters` of `round` and takes its update into the round `open`.
    fn hand_in(&mut self, k: usize, round: u64, parameters: &[f32], open: u64, totals: &mut Totals) {
        let uses_control = self.aggregation.strategy.uses_control();
        let zeros = vec![0.0; parameters.len()];
        let control = self.server.vectors.first().unwrap_or(&zeros);
        let from = StartingPoint { round, parameters, control: uses_control.then_some(control.as_slice()) };
        let lazy_below = self.aggregation.lazy.map(|factor| lazy::threshold(factor, &self.server.steps));
        let plan = Plan::new(&self.configs[k], &TaskBody { lazy_below, ..TaskBody::train(round) }).unwrap();
        let trained = self.engine.train(&self.clients[k], &from, &plan, || ControlFlow::Continue(()));
        let update = trained.unwrap().unwrap();
        let (body, sent) = match update.notice {
            Some(notice) => (notice, Sent::Notice),
            None => (update.body, Sent::Update),
        };
        self.engine.settle(&mut self.clients[k], sent);
        let (layout, config, lasts) = (&self.layout, &self.aggregation, &self.lasts);
        let added =
            Intake { layout, config, terms: CLIENTS, lasts, accepted: None }.with_term(&body, open, |term| {
                term.add_to(&self.collector).unwrap();
                totals.updates += 1;
                totals.samples += term.meta.num_samples as f64;
                totals.sample_steps += term.meta.num_samples as f64 * term.local_norm;
                Ok(term.meta.clone())
            });
        self.lasts.keep(&added.unwrap(), &body);
    }

    fn close(&mut self, totals: &Totals) {
        let AggregationConfig { strategy, server, .. } = &self.aggregation;
        let before = self.parameters.clone();
        let parameters = &mut self.parameters;
        next_parameters(*strategy, server, &mut self.server, &self.collector, totals, parameters);
        lazy::push_step(&mut self.server.steps, &before, &self.parameters);
        self.collector.reset();
    }

    /// The largest difference to the reference after this round.
    fn difference(&self, expected: &[f64]) -> f64 {
        let kept = self.parameters.iter().step_by(EVERY);
        assert_eq!(kept.len(), expected.len());
        kept.zip(expected).map(|(found, expected)| (f64::from(*found) - expected).abs()).fold(0.0, f64::max)
    }
}

/// The largest difference over 20 synchronous rounds. Updates come in another order in every round.
fn synchronous(strategy: &str, flags: &[&str], lazy: f64, expected: &[Vec<f64>]) -> f64 {
    let mut problem = Problem::new(strategy, flags, lazy);
    let mut worst: f64 = 0.0;
    for (round, expected) in expected.iter().enumerate() {
        let mut totals = Totals::default();
        let parameters = problem.parameters.clone();
        for turn in 0..CLIENTS {
            let k = (turn * 3 + round) % CLIENTS;
            problem.hand_in(k, round as u64, &parameters, round as u64, &mut totals);
        }
        problem.close(&totals);
        worst = worst.max(problem.difference(expected));
    }
    worst
}

/// The same for the reference's order of arrivals.
fn asynchronous(expected: &[Vec<f64>]) -> f64 {
    let mut problem = Problem::new("fedbuff:2", &[], 0.0);
    let mut starts = vec![(0u64, problem.parameters.clone()); CLIENTS];
    let (mut worst, mut open, mut totals) = (0.0f64, 0u64, Totals::default());
    for arrival in 0.. {
        let k = if arrival % 2 == 0 { 0 } else { 1 + (arrival / 2) % (CLIENTS - 1) };
        let (base, parameters) = starts[k].clone();
        problem.hand_in(k, base, &parameters, open, &mut totals);
        if totals.updates == 2 {
            problem.close(&std::mem::take(&mut totals));
            worst = worst.max(problem.difference(&expected[open as usize]));
            open += 1;
        }
        starts[k] = (open, problem.parameters.clone());
        if open as usize == ROUNDS {
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
