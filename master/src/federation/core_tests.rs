//! The close of a round: once, as a whole, and by the settings that the round was begun with.

use super::*;
use fl_model::{GlobalModel, ModelSpec, init_parameters};
use fl_protocol::{Normalization, update, update::Encoded};

fn spec() -> ModelSpec {
    ModelSpec::classifier("softmax", &[1, 8, 8], 10, 0).unwrap()
}

fn core(settings: AggregationSettings) -> Core {
    let spec = spec();
    let parameters = init_parameters(&spec, 1);
    let normalization = Normalization { mean: vec![0.0], std: vec![1.0] };
    let model = GlobalModel {
        round: 0,
        network: spec.clone().into(),
        normalization,
        names: fl_protocol::DataNames::default(),
        parameters,
        buffers: fl_model::Buffers::default(),
    };
    Core::new(spec.layout(), settings, Snapshot::initial(model.to_safetensors().unwrap().into())).unwrap()
}

fn body(worker: &str, round: u64, value: f32) -> Bytes {
    let layout = spec().layout();
    let meta = UpdateMeta {
        worker_id: worker.parse().unwrap(),
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
    let values = vec![value; layout.parameters()];
    let tensors: Vec<_> = layout.tensors().iter().map(|t| Encoded::F32(&values[..t.len])).collect();
    update::write(&meta, &layout, &tensors).unwrap().into()
}

/// Adds updates of these workers to the open round, and gives the round as it closes with them.
fn closed(core: &Core, values: &[(&str, f32)]) -> ClosedRound {
    let round = core.global().round;
    let updates = values
        .iter()
        .map(|(worker, value)| {
            let added = core.add(&body(worker, round, *value), 100).unwrap();
            (added.meta.worker_id, added.contribution)
        })
        .collect();
    ClosedRound::new(round, updates, (1.0, 2.0), 0)
}

fn parameters(core: &Core) -> Vec<f32> {
    core.global().parameters().unwrap()
}

#[test]
fn a_close_that_is_repeated_changes_nothing() {
    let core = core(AggregationSettings { lazy: Some(0.8), ..AggregationSettings::default() });
    let round = closed(&core, &[("a", 0.5), ("b", 1.5)]);
    let outcome = core.close(&round).unwrap();
    let model = core.global().bytes.clone();
    assert_eq!(outcome.global.bytes, model);
    assert!(matches!(core.close(&round), Err(CloseError::NotOpen { asked: 0, open: 1 })));
    assert_eq!(core.global().bytes, model);
    assert_eq!(outcome.snapshot.server.squared_steps.len(), 1);
}

#[test]
fn too_few_updates_are_an_error_and_the_round_stays_open() {
    let krum = AggregationSettings { strategy: "krum:1".parse().unwrap(), ..AggregationSettings::default() };
    let core = core(krum);
    let few = closed(&core, &[("a", 0.5), ("b", 1.5)]);
    assert!(matches!(core.close(&few), Err(CloseError::TooFewUpdates { needed: 5, found: 2, .. })));
    let before = parameters(&core);
    let enough = closed(&core, &[("a", 0.5), ("b", 0.5), ("c", 0.5), ("d", 0.5), ("e", 9.0)]);
    core.close(&enough).unwrap();
    let step = parameters(&core)[0] - before[0];
    assert!((step - 0.5).abs() < 1e-6, "{step}");
}

#[test]
fn an_update_that_is_removed_leaves_no_trace() {
    let (with, without) = (core(AggregationSettings::default()), core(AggregationSettings::default()));
    with.add(&body("gone", 0, 7.25), 100).unwrap();
    let round = closed(&with, &[("a", 0.5), ("b", 1.5)]);
    let gone = body("gone", 0, 7.25);
    with.remove(&Header::read(&gone).unwrap(), &gone);
    with.close(&round).unwrap();
    without.close(&closed(&without, &[("a", 0.5), ("b", 1.5)])).unwrap();
    assert_eq!(with.global().bytes, without.global().bytes);
}

#[test]
fn new_settings_hold_from_the_next_round_on() {
    let core = core(AggregationSettings::default());
    let start = parameters(&core);
    let round = closed(&core, &[("a", 0.5)]);
    core.configure(AggregationSettings {
        strategy: "scaffold:3".parse().unwrap(),
        ..AggregationSettings::default()
    });
    assert!(core.global().control.is_none());
    core.close(&round).unwrap();
    assert!((parameters(&core)[0] - start[0] - 0.5).abs() < 1e-6, "closed by fedavg");
    assert!(core.global().control.is_some(), "the next round is one of SCAFFOLD");
    assert!(core.add(&body("a", 1, 0.5), 100).is_err(), "it needs a control variate");
}
