//! What a client carries from round to round: nothing that quantization drops is lost, and SCAFFOLD's control
//! variate is that of the paper, with momentum too.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use clap::Parser;
use fl_datasets::{Dataset, DatasetSpec, Features, Part};
use fl_model::{GlobalModel, ModelSpec};
use fl_protocol::{ModelLayout, TaskBody, Update};
use fl_worker::{Args, ClientState, Config, Engine, Plan, Sent, StartingPoint};
use std::{ops::ControlFlow, sync::Arc};

fn digits() -> Arc<Dataset> {
    Arc::new(fl_datasets::load(&DatasetSpec::Digits, None, Part::Train).unwrap())
}

fn model(data: &Dataset, preset: &str) -> GlobalModel {
    let spec = ModelSpec::classifier(preset, data.input_shape(), data.num_classes(), 5000).unwrap();
    let parameters = fl_model::init_parameters(&spec, 3);
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

fn config(args: &[&str]) -> Config {
    Args::parse_from(["fl-worker", "--worker-id=w", "--dataset-size=200"].iter().chain(args)).check().unwrap()
}

struct Client {
    engine: Engine,
    state: ClientState,
    config: Config,
    layout: ModelLayout,
}

impl Client {
    fn new(args: &[&str], data: &Arc<Dataset>, global: &GlobalModel) -> Self {
        let config = config(args);
        let engine = Engine::new(&config, data.clone(), global).unwrap();
        let state = ClientState::new(&config, data).unwrap();
        Self { engine, state, config, layout: global.network.layout().into_owned() }
    }

    /// Trains a round; what the master decodes of the update is added to `sum`.
    fn round(&mut self, round: u64, parameters: &[f32], control: Option<&[f32]>, sum: &mut [f64]) {
        let plan = Plan::new(&self.config, &TaskBody::train(round)).unwrap();
        let from = StartingPoint { round, parameters, control };
        let trained = self.engine.train(&self.state, &from, &plan, || ControlFlow::Continue(()));
        let body = trained.unwrap().unwrap().body;
        self.engine.settle(&mut self.state, Sent::Update);
        Update::parse(&body, &self.layout).unwrap().for_each_chunk(|at, values| {
            sum[at..].iter_mut().zip(values).for_each(|(sum, v)| *sum += f64::from(*v));
        });
    }
}

#[test]
fn sent_updates_and_residual_add_up_to_the_deltas() {
    let data = digits();
    let global = model(&data, "mlp");
    // The same deltas in every client: the model does not move, and batches depend on name and round.
    let sums = |args: &[&str]| {
        let mut client = Client::new(args, &data, &global);
        let mut sum = vec![0.0f64; global.parameters.len()];
        (0..20).for_each(|round| client.round(round, &global.parameters, None, &mut sum));
        (sum, client.state.memory.feedback.residual().to_vec())
    };
    let (deltas, none) = sums(&["--quantizer=none"]);
    assert!(none.is_empty());
    for args in [
        ["--quantizer=MSQ_v2", "--bits=2", "--entropy=true"],
        ["--quantizer=MSQ_v2", "--bits=4", "--entropy=false"],
        ["--quantizer=SDQ", "--bits=2", "--entropy=true"],
        ["--quantizer=BetaQ", "--bits=3", "--entropy=true"],
        ["--quantizer=bin", "--bits=1", "--entropy=false"],
    ] {
        let (sent, residual) = sums(&args);
        assert!(residual.iter().any(|r| *r != 0.0), "{args:?}: something is lost at first");
        let worst = sent.iter().zip(&residual).zip(&deltas);
        let worst = worst.map(|((s, r), d)| (s + f64::from(*r) - d).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-4, "{args:?}: {worst}");
    }
}

#[test]
fn unbiased_rounding_carries_nothing_over_unless_told() {
    let data = digits();
    let global = model(&data, "softmax");
    let residual = |args: &[&str]| {
        let mut client = Client::new(args, &data, &global);
        client.round(0, &global.parameters, None, &mut vec![0.0; global.parameters.len()]);
        client.state.memory.feedback.residual().len()
    };
    assert_eq!(residual(&["--quantizer=StocQ", "--bits=2"]), 0);
    assert_eq!(residual(&["--quantizer=StocQ", "--bits=4", "--entropy=false"]), 0);
    assert_eq!(
        residual(&["--quantizer=StocQ", "--bits=2", "--error-feedback=true"]),
        global.parameters.len()
    );
}

#[test]
fn adam_starts_every_round_anew_at_the_rate_of_its_schedule() {
    let data = digits();
    let global = model(&data, "mlp");
    // What round 4 sends, after a training in round 0 if there was one.
    let sent = |args: &[&str], trained_before: bool| {
        let mut client = Client::new(&[args, &["--quantizer=none"]].concat(), &data, &global);
        let mut sum = vec![0.0f64; global.parameters.len()];
        if trained_before {
            client.round(0, &global.parameters, None, &mut sum);
            sum.fill(0.0);
        }
        client.round(4, &global.parameters, None, &mut sum);
        sum
    };
    for optimizer in ["--optimizer=adam", "--optimizer=adamw"] {
        let scheduled =
            sent(&[optimizer, "--lr=0.02", "--lr-schedule=step:2:0.5", "--weight-decay=0.1"], true);
        let constant = |lr| sent(&[optimizer, lr, "--weight-decay=0.1"], false);
        assert_eq!(scheduled, constant("--lr=0.005"), "{optimizer}");
        assert_ne!(scheduled, constant("--lr=0.02"), "{optimizer}");
    }
}

/// One SCAFFOLD client in f64, as numpy would compute it: softmax regression on full batches, momentum.
struct Reference {
    x: Vec<Vec<f64>>,
    y: Vec<usize>,
}

const CLASSES: usize = 10;
const STEPS: usize = 7;
const LR: f64 = 0.1;
const MOMENTUM: f64 = 0.8;

impl Reference {
    /// The gradient of the mean cross-entropy; weights `[classes, features]`, then biases.
    fn gradient(&self, w: &[f64]) -> Vec<f64> {
        let features = self.x[0].len();
        let mut gradient = vec![0.0; w.len()];
        for (x, y) in self.x.iter().zip(&self.y) {
            let logit = |class: usize| {
                let row = &w[class * features..][..features];
                row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + w[CLASSES * features + class]
            };
            let logits: Vec<f64> = (0..CLASSES).map(logit).collect();
            let largest = logits.iter().copied().fold(f64::MIN, f64::max);
            let exps: Vec<f64> = logits.iter().map(|l| (l - largest).exp()).collect();
            let total: f64 = exps.iter().sum();
            for class in 0..CLASSES {
                let error = (exps[class] / total - f64::from(u8::from(class == *y))) / self.x.len() as f64;
                gradient[class * features..][..features].iter_mut().zip(x).for_each(|(g, x)| *g += error * x);
                gradient[CLASSES * features + class] += error;
            }
        }
        gradient
    }

    /// `v = m v + g - c_i + c`, `y = y - lr v`; then `c_i += -c + (x - y) / (lr |a|_1)`, where `a` counts how often
    /// each step's gradient moved the model: `a_k = 1 + m + ... + m^(K - k)`.
    fn round(&self, global: &[f64], control: &[f64], own: &mut [f64]) -> Vec<f64> {
        let mut w = global.to_vec();
        let mut velocity = vec![0.0; w.len()];
        for _ in 0..STEPS {
            let gradient = self.gradient(&w);
            for i in 0..w.len() {
                velocity[i] = MOMENTUM * velocity[i] + gradient[i] - own[i] + control[i];
                w[i] -= LR * velocity[i];
            }
        }
        let moved: f64 =
            (1..=STEPS).map(|k| (0..=(STEPS - k) as i32).map(|j| MOMENTUM.powi(j)).sum::<f64>()).sum();
        for i in 0..w.len() {
            own[i] += -control[i] + (global[i] - w[i]) / (LR * moved);
        }
        w
    }
}

#[test]
fn scaffold_with_momentum_is_the_papers() {
    let data = digits();
    let mut global = model(&data, "softmax");
    let args = [
        format!("--local-steps={STEPS}"),
        format!("--lr={LR}"),
        format!("--momentum={MOMENTUM}"),
        "--batch-size=1000".to_owned(),
        "--quantizer=none".to_owned(),
    ];
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut client = Client::new(&args, &data, &global);
    let (mean, std) = (global.normalization.mean[0], global.normalization.std[0]);
    let Features::U8(pixels) = data.train.features() else { panic!("bytes expected") };
    let indices = client.state.indices.iter().map(|index| *index as usize);
    let reference = Reference {
        x: indices
            .clone()
            .map(|i| pixels[i * 64..][..64].iter().map(|p| f64::from((f32::from(*p) - mean) / std)).collect())
            .collect(),
        y: indices.map(|i| data.train.labels()[i] as usize).collect(),
    };
    let count = global.parameters.len();
    let mut expected: Vec<f64> = global.parameters.iter().map(|w| f64::from(*w)).collect();
    let (mut expected_own, mut control) = (vec![0.0; count], vec![0.0f32; count]);
    for round in 0..4 {
        let exact: Vec<f64> = control.iter().map(|c| f64::from(*c)).collect();
        expected = reference.round(&expected, &exact, &mut expected_own);
        let mut sum = vec![0.0; count];
        client.round(round, &global.parameters.clone(), Some(&control), &mut sum);
        global.parameters.iter_mut().zip(&sum).for_each(|(w, delta)| *w += *delta as f32);
        // A server with two workers, of which the other one's variate stays zero.
        control.iter_mut().zip(&client.state.memory.control_variate).for_each(|(c, own)| *c = own / 2.0);
        let worst = |found: &[f32], expected: &[f64]| {
            found.iter().zip(expected).map(|(f, e)| (f64::from(*f) - e).abs()).fold(0.0, f64::max)
        };
        let own = &client.state.memory.control_variate;
        let largest = expected_own.iter().map(|c| c.abs()).fold(0.0, f64::max);
        assert!(largest > 0.02, "{largest}: the comparison means something");
        assert!(worst(own, &expected_own) < 1e-4, "round {round}: {}", worst(own, &expected_own));
        assert!(worst(&global.parameters, &expected) < 1e-4, "round {round}");
    }
}
