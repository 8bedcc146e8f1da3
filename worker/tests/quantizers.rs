//! Every quantizer really trains: four workers on the digits, averaged exactly.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use clap::Parser;
use fl_datasets::{Dataset, DatasetSpec, Part, Samples};
use fl_master::aggregate::ExactSum;
use fl_model::{Backend, Batch, BatchEvaluation, Evaluation, GlobalModel, ModelSpec, init_parameters};
use fl_protocol::{TaskBody, Update};
use fl_worker::{Args, LocalClient, Plan, Sent, StartingPoint};
use std::{ops::ControlFlow, sync::Arc};

const WORKERS: usize = 4;

fn accuracy(global: &GlobalModel, data: &Dataset) -> f64 {
    let mut learner = global.network.known().unwrap().learner(Backend::Auto, 1).unwrap();
    learner.load(&global.parameters);
    let mut samples = Samples::new();
    let all: Vec<u32> = (0..data.test.len() as u32).collect();
    data.test.gather(&all, &global.normalization, &mut samples);
    let sums: BatchEvaluation = learner.evaluate(Batch::new(samples.inputs(), samples.targets())).unwrap();
    Evaluation::from(sums).accuracy.unwrap()
}

/// Trains 40 rounds with a small network and gives the accuracy.
fn federation(quantizer: &str, bits: u8) -> f64 {
    let data = Arc::new(fl_datasets::load(&DatasetSpec::Digits, None, Part::Both).unwrap());
    let spec = ModelSpec::classifier("mlp", data.input_shape(), data.num_classes(), 10_000).unwrap();
    let parameters = init_parameters(&spec, 1);
    let layout = spec.layout();
    let normalization = data.normalization.clone();
    let mut global = GlobalModel {
        round: 0,
        network: spec.into(),
        normalization,
        names: data.names.clone(),
        parameters,
        buffers: fl_model::Buffers::default(),
    };
    let configs: Vec<_> = (0..WORKERS)
        .map(|id| {
            let args = [
                "fl-worker".to_owned(),
                format!("--worker-id=w{id}"),
                format!("--partition-id={id}"),
                format!("--num-partitions={WORKERS}"),
                format!("--quantizer={quantizer}"),
                format!("--bits={bits}"),
                "--partition=dirichlet:0.5".to_owned(),
                "--local-steps=10".to_owned(),
                "--lr=0.1".to_owned(),
                "--mem-mb=0".to_owned(),
            ];
            Args::parse_from(args).check().unwrap()
        })
        .collect();
    let mut clients: Vec<_> =
        configs.iter().map(|config| LocalClient::new(config, data.clone(), &global).unwrap()).collect();
    let mut sum = ExactSum::new(layout.parameters());
    for round in 0..40 {
        let task = TaskBody::train(round);
        let mut samples = 0.0;
        for (client, config) in clients.iter_mut().zip(&configs) {
            let plan = Plan::new(config, &task).unwrap();
            let from = StartingPoint { round, parameters: &global.parameters, control: None };
            let trained = client.train(&from, &plan, || ControlFlow::Continue(()));
            let update = trained.unwrap().unwrap();
            client.settle(Sent::Update);
            let parsed = Update::parse(&update.body, &layout).unwrap();
            sum.add(update.num_samples as f64, parsed.max_abs, |f| parsed.for_each_piece(f)).unwrap();
            samples += update.num_samples as f64;
        }
        sum.for_each(|i, value| global.parameters[i] += (value / samples) as f32);
        sum.reset();
        global.round += 1;
    }
    accuracy(&global, &data)
}

#[test]
fn all_quantizers_train_the_digits() {
    for (quantizer, bits) in
        [("StocQ", 4), ("MSQ_v2", 4), ("SDQ", 4), ("BetaQ", 4), ("laq8", 8), ("bin", 1), ("none", 8)]
    {
        let accuracy = federation(quantizer, bits);
        println!("{quantizer} at {bits} bits: {accuracy:.4}");
        assert!(accuracy > 0.93, "{quantizer} at {bits} bits: {accuracy}");
    }
}
