//! Memory of a parameter more: what a federation holds at its peak, from the first update to the checkpoint, grows by
//! a known number of bytes with each parameter of the model.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use fl_master::{
    Core, Snapshot,
    federation::{AggregationSettings, round::ClosedRound},
};
use fl_model::{GlobalModel, ModelSpec, init_parameters};
use fl_protocol::{DataNames, Normalization, UpdateMeta, update, update::Encoded};
use fl_quant::{Encoder, Scheme, Spec, encode_update};
use peak_alloc::PeakAlloc;
use std::io;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Small enough that buffers have the capacity that they need.
const SIZES: [usize; 2] = [600_000, 900_000];
const WORKERS: usize = 3;

fn body(spec: &ModelSpec, worker: usize, round: u64) -> Vec<u8> {
    let layout = spec.layout();
    let x: Vec<f32> = (0..layout.parameters()).map(|i| ((i + worker) as f32).sin() * 1e-3).collect();
    let mut streams = Vec::new();
    encode_update(&mut Encoder::default(), &x, &layout.shapes(), &Spec::new(Scheme::MsqV2, 4), &mut streams)
        .unwrap();
    let meta = UpdateMeta {
        worker_id: format!("w{worker}").parse().unwrap(),
        round,
        num_samples: 10,
        loss: None,
        accuracy: None,
        compute_factor: None,
        local_steps: Some(5),
        local_norm: None,
        reuse: None,
        metrics: Default::default(),
    };
    let tensors: Vec<_> = streams.iter().map(|bytes| Encoded::Stream(bytes)).collect();
    update::write(&meta, &layout, &tensors).unwrap()
}

/// Parameters, and bytes at the peak of three rounds.
fn peak(strategy: &str, dim: usize) -> (usize, usize) {
    let spec = ModelSpec::classifier("mlp", &[1, 8, 8], 10, dim).unwrap();
    let before = MEMORY.current_usage();
    let model = GlobalModel {
        round: 0,
        network: spec.clone().into(),
        normalization: Normalization { mean: vec![0.0], std: vec![1.0] },
        names: DataNames::default(),
        parameters: init_parameters(&spec, 1),
        buffers: fl_model::Buffers::default(),
    };
    let initial = Snapshot::initial(model.to_safetensors().unwrap().into());
    drop(model);
    let settings =
        AggregationSettings { strategy: strategy.parse().unwrap(), ..AggregationSettings::default() };
    let core = Core::new(spec.layout(), settings, initial).unwrap();
    let mut most = 0;
    for round in 0..3 {
        // The bodies have a budget of their own.
        let bodies: Vec<_> = (0..WORKERS).map(|worker| body(&spec, worker, round)).collect();
        let of_bodies: usize = bodies.iter().map(Vec::capacity).sum();
        MEMORY.reset_peak_usage();
        let updates = bodies
            .iter()
            .map(|body| {
                let added = core.add(body, 0).unwrap();
                (added.meta.worker_id, added.contribution)
            })
            .collect();
        let outcome = core.close(&ClosedRound::new(round, updates, (0.0, 1.0), 0)).unwrap();
        outcome.snapshot.encode(&[0; 32], &mut io::sink()).unwrap();
        most = most.max(MEMORY.peak_usage() - before - of_bodies);
    }
    (spec.num_parameters(), most)
}

/// One test: what runs beside it would be counted.
#[test]
fn a_parameter_more_costs_its_bytes_and_those_of_the_strategy() {
    // The model, the sum and the next model. What is allocated counts in full here; the memory of a large next model
    // is taken page by page, while the sum gives its own back.
    for (strategy, vectors) in [("fedavg", 0), ("fednova", 0), ("fedavgm", 1), ("fedadam", 2)] {
        let [(few, least), (many, most)] = SIZES.map(|dim| peak(strategy, dim));
        let growth = (most as f64 - least as f64) / (many - few) as f64;
        println!("{strategy}: {growth:.2} bytes a parameter");
        let expected = 16.0 + 4.0 * f64::from(vectors);
        let is_expected = (growth - expected).abs() < 0.5;
        assert!(is_expected, "{strategy}: {growth:.2} bytes a parameter, not {expected}");
    }
}
