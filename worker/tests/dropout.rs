//! Dropout in a federation: masks differ from worker to worker and from round to round, and depend on
//! nothing else.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use clap::Parser;
use fl_datasets::{DatasetSpec, Part};
use fl_model::{GlobalModel, Layer, ModelSpec, init_parameters};
use fl_protocol::{Input, Task, TaskBody, Update};
use fl_worker::{Args, ClientMemory, ClientState, Engine, Plan, StartingPoint};
use std::{ops::ControlFlow, sync::Arc};

/// The update of one step on the same two samples, whoever trains and in whatever round.
fn update(backend: &str, seed: u64, worker: &str, round: u64) -> Vec<f32> {
    let data = Arc::new(fl_datasets::load(&DatasetSpec::Digits, None, Part::Train).unwrap());
    let linear = Layer::Linear { in_features: 64, out_features: 10, bias: true };
    let spec = ModelSpec {
        name: "drops".into(),
        input: Input::numbers(&[1, 8, 8]),
        task: Task::classes(10),
        layers: vec![Layer::Flatten, Layer::Dropout { p: 0.5 }, linear],
    };
    let parameters = init_parameters(&spec, 1);
    let layout = spec.layout();
    let global = GlobalModel {
        round,
        network: spec.into(),
        normalization: data.normalization.clone(),
        names: data.names.clone(),
        parameters: parameters.clone(),
        buffers: fl_model::Buffers::default(),
    };
    let backend = format!("--backend={backend}");
    let args = ["fl-worker", "--local-steps=1", "--batch-size=1", "--quantizer=none", &backend];
    let config = Args::parse_from(args).check().unwrap();
    let client = ClientState {
        worker_id: worker.parse().unwrap(),
        seed,
        // One sample twice: the order of the batches, which is drawn too, changes nothing.
        indices: vec![3, 3],
        held_out: Vec::new(),
        memory: ClientMemory::default(),
    };
    let from = StartingPoint { round, parameters: &parameters, control: None };
    let plan = Plan::new(&config, &TaskBody::train(round)).unwrap();
    let mut engine = Engine::new(&config, data, &global).unwrap();
    let made = engine.train(&client, &from, &plan, || ControlFlow::Continue(())).unwrap().unwrap();
    let mut values = Vec::new();
    Update::parse(&made.body, &layout).unwrap().for_each_chunk(|_, chunk| values.extend_from_slice(chunk));
    values
}

#[test]
fn masks_depend_on_seed_worker_and_round_and_on_nothing_else() {
    for backend in ["fused", "flex"] {
        let first = update(backend, 1, "a", 4);
        assert!(first.iter().any(|value| *value != 0.0));
        assert_eq!(first, update(backend, 1, "a", 4), "{backend}");
        assert_ne!(first, update(backend, 1, "b", 4), "{backend}: another worker");
        assert_ne!(first, update(backend, 1, "a", 5), "{backend}: another round");
        assert_ne!(first, update(backend, 2, "a", 4), "{backend}: another seed");
    }
    let (fused, flex) = (update("fused", 1, "a", 4), update("flex", 1, "a", 4));
    let difference = fused.iter().zip(&flex).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(difference < 1e-5, "both backends drop the same: {difference}");
}
