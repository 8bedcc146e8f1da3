//! `TRAINABLE`: only the chosen tensors move, with every quantizer and with SCAFFOLD, and the others cost next to
//! nothing.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use clap::Parser;
use fl_datasets::{Dataset, DatasetSpec, Part};
use fl_model::{GlobalModel, ModelSpec, TensorPattern, complement, init_parameters};
use fl_protocol::{TaskBody, Update};
use fl_worker::{Args, LocalClient, Plan, Sent, StartingPoint};
use std::{
    ops::{ControlFlow, Range},
    sync::Arc,
};

const LAST: &str = r"^3\.";

fn model(data: &Dataset) -> GlobalModel {
    let spec = ModelSpec::classifier("mlp", data.input_shape(), data.num_classes(), 20_000).unwrap();
    let parameters = init_parameters(&spec, 1);
    let (normalization, names) = (data.normalization.clone(), data.names.clone());
    GlobalModel {
        round: 0,
        network: spec.into(),
        normalization,
        names,
        parameters,
        buffers: fl_model::Buffers::default(),
    }
}

/// Two rounds of a worker with `flags`. Returns the values that the last update decodes to, the change of its control
/// variate, and its bytes.
fn train(flags: &[&str], trainable: Option<&str>, with_control: bool) -> (Vec<f32>, Vec<f32>, usize) {
    let data = Arc::new(fl_datasets::load(&DatasetSpec::Digits, None, Part::Train).unwrap());
    let global = model(&data);
    let layout = global.network.layout().into_owned();
    let common = ["fl-worker", "--worker-id=w", "--local-steps=3", "--mem-mb=0"];
    let config = Args::parse_from(common.iter().chain(flags)).check().unwrap();
    let mut client = LocalClient::new(&config, data, &global).unwrap();
    let control = vec![0.01; layout.parameters()];
    let mut last = (Vec::new(), Vec::new(), 0);
    for round in 0..2 {
        // The first round trains everything: what it leaves in the residual must not come out later.
        client.set_parts(trainable.filter(|_| round == 1), None).unwrap();
        let plan = Plan::new(&config, &TaskBody::train(round)).unwrap();
        let from = StartingPoint {
            round,
            parameters: &global.parameters,
            control: with_control.then_some(control.as_slice()),
        };
        let update = client.train(&from, &plan, || ControlFlow::Continue(())).unwrap().unwrap();
        client.settle(Sent::Update);
        let parsed = Update::parse(&update.body, &layout).unwrap();
        let mut values = vec![0.0; layout.parameters()];
        parsed.for_each_chunk(|at, chunk| values[at..at + chunk.len()].copy_from_slice(chunk));
        let mut change = vec![0.0; if with_control { layout.parameters() } else { 0 }];
        parsed.for_each_control_chunk(|at, chunk| change[at..at + chunk.len()].copy_from_slice(chunk));
        last = (values, change, update.body.len());
    }
    if let Some(pattern) = trainable {
        let residual = client.memory().feedback.residual();
        assert!(residual.is_empty() || frozen(pattern, &global).all(|at| residual[at] == 0.0), "{flags:?}");
    }
    last
}

fn frozen(pattern: &str, global: &GlobalModel) -> impl Iterator<Item = usize> {
    let layout = global.network.layout();
    let trained = pattern.parse::<TensorPattern>().unwrap().ranges(&layout).unwrap();
    complement(&trained, layout.parameters()).into_iter().flat_map(|range: Range<usize>| range)
}

#[test]
fn only_the_chosen_tensors_move_with_every_quantizer() {
    let data = fl_datasets::load(&DatasetSpec::Digits, None, Part::Train).unwrap();
    let global = model(&data);
    for quantizer in ["StocQ", "MSQ_v2", "SDQ", "BetaQ", "bin", "laq8", "f16", "none"] {
        for entropy in ["true", "false"] {
            let flags = [
                &format!("--quantizer={quantizer}")[..],
                &format!("--entropy={entropy}"),
                "--error-feedback=true",
            ];
            let (_, _, all) = train(&flags, None, false);
            let (values, _, part) = train(&flags, Some(LAST), false);
            println!("{quantizer}, entropy={entropy}: {all} bytes, of the last layer alone {part}");
            assert!(frozen(LAST, &global).all(|at| values[at] == 0.0), "{quantizer} {entropy}");
            assert!(values.iter().any(|value| *value != 0.0), "{quantizer} {entropy}");
            assert!(part < all * 3 / 4, "{quantizer} {entropy}: {part} bytes of {all}");
        }
    }
}

#[test]
fn scaffold_leaves_the_others_and_their_control_variate_alone() {
    let data = fl_datasets::load(&DatasetSpec::Digits, None, Part::Train).unwrap();
    let global = model(&data);
    let (values, control, _) = train(&["--quantizer=none"], Some(LAST), true);
    assert!(frozen(LAST, &global).all(|at| values[at] == 0.0 && control[at] == 0.0));
    assert!(control.iter().any(|value| *value != 0.0));
}

#[test]
fn adam_trains_the_chosen_tensors_alone_too() {
    let data = fl_datasets::load(&DatasetSpec::Digits, None, Part::Train).unwrap();
    let global = model(&data);
    let (values, ..) =
        train(&["--quantizer=none", "--optimizer=adamw", "--weight-decay=0.1"], Some(LAST), false);
    assert!(frozen(LAST, &global).all(|at| values[at] == 0.0));
    assert!(values.iter().any(|value| *value != 0.0));
}
