//! A restart under other aggregation settings: rounds that were closed are remade as they were closed, the open
//! round is finished as it was begun, and the new settings hold from the next round on.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Fixture, body, config, delta, layout};
use fl_master::{Config, settings::NormAction};
use fl_model::ModelSpec;
use fl_protocol::{UpdateMeta, update, update::Encoded};
use std::{fs, path::Path};

fn with(dir: &Path, strategy: &str, server_lr: f64) -> Config {
    let mut config = config(dir);
    config.aggregation.strategy = strategy.parse().unwrap();
    config.aggregation.server.lr = server_lr;
    config
}

async fn round(fixture: &Fixture, round: u64) {
    for worker in 0..2 {
        fixture.accepted(body(worker, round)).await;
    }
}

/// The newest checkpoint is gone: the start has to remake its round from the journal.
fn forget_newest_checkpoint(dir: &Path) {
    let mut checkpoints: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("checkpoint-"))
        .collect();
    checkpoints.sort();
    fs::remove_file(checkpoints.last().unwrap()).unwrap();
}

#[tokio::test]
async fn a_closed_round_is_remade_as_it_was_closed_whatever_the_settings_say_now() {
    for (strategy, server_lr) in [("fedavgm", 0.25), ("fedavg", 1.0), ("median", 1.0), ("fedadam", 0.01)] {
        let dir = tempfile::tempdir().unwrap();
        let fixture = Fixture::start(with(dir.path(), "fedavgm", 1.0)).await;
        for r in 0..3 {
            round(&fixture, r).await;
        }
        let before = fixture.master.global();
        fixture.master.shutdown().await.unwrap();
        forget_newest_checkpoint(dir.path());
        let fixture = Fixture::start(with(dir.path(), strategy, server_lr)).await;
        assert_eq!(fixture.master.global(), before, "{strategy} {server_lr}");
        // It goes on.
        round(&fixture, 3).await;
        fixture.master.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn the_open_round_is_finished_as_it_was_begun_and_the_next_one_is_not() {
    // One after the other under settings that never change, as the reference of each round.
    let reference = |strategies: [(&'static str, f64); 2]| async move {
        let dir = tempfile::tempdir().unwrap();
        let mut models = Vec::new();
        for (r, (strategy, server_lr)) in strategies.into_iter().enumerate() {
            let fixture = Fixture::start(with(dir.path(), strategy, server_lr)).await;
            round(&fixture, r as u64).await;
            models.push(fixture.master.global());
            fixture.master.shutdown().await.unwrap();
        }
        models
    };
    let (first, second) = (("fedavg", 0.5), ("trimmed_mean:1", 1.0));
    let mut expected = None;
    for change_at_update in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let fixture = Fixture::start(with(dir.path(), first.0, first.1)).await;
        fixture.accepted(body(0, 0)).await;
        let mut changed = with(dir.path(), second.0, second.1);
        changed.round.min_clients = 3;
        let fixture = if change_at_update {
            fixture.master.shutdown().await.unwrap();
            Fixture::start(changed.clone()).await
        } else {
            fixture
        };
        fixture.accepted(body(1, 0)).await;
        if change_at_update {
            // Three updates close a round now.
            fixture.accepted(body(2, 0)).await;
        }
        let model = fixture.master.global();
        fixture.master.shutdown().await.unwrap();
        if change_at_update {
            // FedAvg of three with its own step size: what a master that never changed makes.
            let dir = tempfile::tempdir().unwrap();
            let mut unchanged = with(dir.path(), first.0, first.1);
            unchanged.round.min_clients = 3;
            let fixture = Fixture::start(unchanged).await;
            for worker in 0..3 {
                fixture.accepted(body(worker, 0)).await;
            }
            assert_eq!(fixture.master.global(), model);
        } else {
            expected = Some(model);
        }
    }
    let models = reference([first, ("fedavg", 1.0)]).await;
    assert_eq!(expected.as_ref(), Some(&models[0]));
    assert_ne!(models[0], models[1]);
}

#[tokio::test]
async fn an_open_round_that_cannot_be_finished_any_more_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut krum = with(dir.path(), "krum:1", 1.0);
    krum.round.min_clients = 5;
    let fixture = Fixture::start(krum).await;
    fixture.accepted(body(0, 0)).await;
    fixture.master.shutdown().await.unwrap();
    let error = fl_master::check(&with(dir.path(), "fedavg", 1.0)).unwrap_err().to_string();
    assert!(error.contains("krum:1") && error.contains("AGG_MIN_CLIENTS"), "{error}");
}

/// What workers send in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    /// With control variates.
    Control,
    /// From the second round on, worker 1 leaves its upload out.
    Lazy,
    /// From the second round on, one is trained from the model before.
    Late,
}

/// An update with uneven local steps.
fn update_of(worker: usize, base: u64, control: bool) -> Vec<u8> {
    let meta = UpdateMeta {
        worker_id: format!("w{worker}").parse().unwrap(),
        round: base,
        num_samples: 10 + worker as u64,
        loss: None,
        accuracy: None,
        compute_factor: None,
        local_steps: Some(1 + worker as u32),
        local_norm: None,
        reuse: None,
        metrics: Default::default(),
    };
    let layout = layout();
    let vectors = [Some(delta(worker, base)), control.then(|| delta(worker + 100, base))];
    let tensors: Vec<_> = vectors
        .iter()
        .flatten()
        .flat_map(|vector| layout.tensors().iter().map(|t| Encoded::F32(&vector[t.offset..t.offset + t.len])))
        .collect();
    update::write(&meta, &layout, &tensors).unwrap()
}

fn updates(kind: Kind, round: u64) -> [Vec<u8>; 2] {
    match kind {
        Kind::Lazy if round > 0 => {
            let meta = update::peek_meta(&update_of(1, round, false)).unwrap();
            let notice = update::write_notice(&UpdateMeta { reuse: Some(0), ..meta }).unwrap();
            [notice, update_of(0, round, false)]
        }
        Kind::Late if round > 0 => {
            [update_of(10 + round as usize, round - 1, false), update_of(0, round, false)]
        }
        _ => [update_of(1, round, kind == Kind::Control), update_of(0, round, kind == Kind::Control)],
    }
}

/// Settings before and after a restart, and what workers send under those before.
type Case = (&'static str, Kind, fn(&mut Config), fn(&mut Config));

fn strategy(config: &mut Config, name: &str) {
    config.aggregation.strategy = name.parse().unwrap();
    config.aggregation.server.lr = config.aggregation.strategy.default_server_lr();
}

/// Changes that leave alone what is checked of an update.
const CASES: [Case; 9] = [
    ("scaffold to fedavg", Kind::Control, |c| strategy(c, "scaffold:4"), |c| strategy(c, "fedavg")),
    ("scaffold to more workers", Kind::Control, |c| strategy(c, "scaffold:4"), |c| strategy(c, "scaffold:9")),
    ("fedavg to scaffold", Kind::Plain, |c| strategy(c, "fedavg"), |c| strategy(c, "scaffold:4")),
    ("lazy to eager", Kind::Lazy, |c| c.aggregation.lazy = Some(1e3), |_| ()),
    ("eager to lazy", Kind::Plain, |_| (), |c| c.aggregation.lazy = Some(1e3)),
    (
        "lazy and another step",
        Kind::Lazy,
        |c| c.aggregation.lazy = Some(1e3),
        |c| {
            c.aggregation.lazy = Some(0.1);
            c.aggregation.server.lr = 0.5;
        },
    ),
    ("fednova to fedyogi", Kind::Plain, |c| strategy(c, "fednova"), |c| strategy(c, "fedyogi")),
    ("fedbuff to fedavg", Kind::Late, |c| strategy(c, "fedbuff:2"), |c| strategy(c, "fedavg")),
    ("max_weight", Kind::Plain, |c| c.aggregation.max_weight = Some(5), |_| ()),
];

async fn hand_in(fixture: &Fixture, kind: Kind, rounds: std::ops::Range<u64>) {
    for round in rounds {
        for update in updates(kind, round) {
            fixture.accepted(update).await;
        }
    }
}

fn changed(dir: &Path, change: fn(&mut Config)) -> Config {
    let mut config = config(dir);
    change(&mut config);
    config
}

#[tokio::test]
async fn closed_rounds_of_every_kind_are_remade_as_they_were_closed() {
    let clipped: Case = (
        "clipped norms",
        Kind::Plain,
        |c| (c.aggregation.max_update_norm, c.aggregation.norm_action) = (Some(0.05), NormAction::Clip),
        |c| c.aggregation.max_update_norm = Some(1e-3),
    );
    for (name, kind, before, after) in CASES.into_iter().chain([clipped]) {
        let dir = tempfile::tempdir().unwrap();
        let fixture = Fixture::start(changed(dir.path(), before)).await;
        hand_in(&fixture, kind, 0..3).await;
        let model = fixture.master.global();
        fixture.master.shutdown().await.unwrap();
        forget_newest_checkpoint(dir.path());
        let changed = changed(dir.path(), after);
        assert_eq!(fl_master::check(&changed).unwrap(), 3, "{name}");
        let fixture = Fixture::start(changed).await;
        assert!(fixture.master.global() == model, "{name}: another model");
        fixture.master.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn open_rounds_of_every_kind_are_finished_as_they_were_begun() {
    for (name, kind, before, after) in CASES {
        let dir = tempfile::tempdir().unwrap();
        let fixture = Fixture::start(changed(dir.path(), before)).await;
        hand_in(&fixture, kind, 0..3).await;
        let model = fixture.master.global();
        fixture.master.shutdown().await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let fixture = Fixture::start(changed(dir.path(), before)).await;
        hand_in(&fixture, kind, 0..2).await;
        let [first, second] = updates(kind, 2);
        fixture.accepted(first).await;
        fixture.master.shutdown().await.unwrap();
        let fixture = Fixture::start(changed(dir.path(), after)).await;
        assert!(fixture.accepted(second).await.aggregated, "{name}");
        assert!(fixture.master.global() == model, "{name}: another model");
        fixture.master.shutdown().await.unwrap();
    }
}

/// So many parameters that twice as many take more than the largest update without control variates.
const LARGE: usize = 300_000;

#[tokio::test]
async fn the_open_round_takes_control_variates_of_a_large_model_after_a_change_to_fedavg() {
    let dir = tempfile::tempdir().unwrap();
    let large = |name: &str| {
        let mut config = config(dir.path());
        (config.model.model, config.model.model_dim) = ("mlp".into(), LARGE);
        strategy(&mut config, name);
        config
    };
    let layout = ModelSpec::classifier("mlp", &[1, 8, 8], 10, LARGE).unwrap().layout();
    let values = vec![0.001; layout.parameters()];
    let body = |worker: usize| {
        let meta = update::peek_meta(&update_of(worker, 0, false)).unwrap();
        let tensors: Vec<_> =
            layout.tensors().iter().map(|t| Encoded::F32(&values[t.offset..t.offset + t.len])).collect();
        update::write(&meta, &layout, &[tensors.clone(), tensors].concat()).unwrap()
    };
    let fixture = Fixture::start(large("scaffold:2")).await;
    fixture.accepted(body(0)).await;
    fixture.master.shutdown().await.unwrap();
    let fixture = Fixture::start(large("fedavg")).await;
    assert!(fixture.accepted(body(1)).await.aggregated);
    fixture.master.shutdown().await.unwrap();
}
