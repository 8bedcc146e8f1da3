//! `fl bench train`: how fast does this machine train a network?

use super::process;
use crate::output;
use clap::Args;
use fl_app::{
    SettingError,
    setting::{number, whole},
};
use fl_datasets::{Dataset, DatasetSpec, Part, Samples};
use fl_model::{
    Backend, Batch, Learner, ModelSpec, OptimizerConfig, TensorPattern, init_parameters, measure_gemm_gflops,
};
use fl_protocol::{Input, Inputs, Targets, Task};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use serde::Serialize;
use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

const WARM_UP: usize = 5;
const SEED: u64 = 42;

/// Arguments of `fl bench train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Preset (softmax, mlp, cnn, mcmahan_cnn, resnet20, vgg11, mobilenet_small, char_lstm, tiny_transformer,
    /// linear_regression) or path of a network ending in .json.
    #[arg(long, default_value = "mlp")]
    model: String,

    /// Parameter budget of mlp.
    #[arg(long, default_value_t = 100_000)]
    model_dim: usize,

    /// Training threads, at least 1.
    #[arg(long, default_value_t = 1)]
    threads: usize,

    /// Backend: auto (the faster of the next two), fused (own kernels), flex (Burn on the CPU), ndarray,
    /// wgpu.
    #[arg(long, default_value = "auto")]
    backend: Backend,

    /// Data set to train on, batches gathered and normalised within the measured time. Left out:
    /// one batch of noise in 28 x 28 pixels and 10 classes, and the step alone is measured.
    #[arg(long)]
    dataset: Option<DatasetSpec>,

    /// Folder with the data set's files, if they are not where the system's package puts them.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Samples per step, 1 to 1000000.
    #[arg(long, default_value_t = 64)]
    batch_size: usize,

    /// Seconds to measure each path.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,

    /// Regular expression: only tensors in whose name it is found are trained.
    #[arg(long, value_name = "REGEX")]
    trainable: Option<TensorPattern>,

    /// Do not measure Burn's flex beside the fused engine.
    #[arg(long)]
    skip_burn: bool,

    /// Print the network's JSON, as model files hold it, and measure nothing.
    #[arg(long)]
    print_spec: bool,
}

#[derive(Debug, Serialize)]
struct Measured<'a> {
    model: &'a str,
    /// The backend that ran, never `auto`.
    backend: String,
    threads: usize,
    batch_size: usize,
    params: usize,
    /// Samples per second, whatever a sample is: an image, a sequence of tokens, a vector.
    images_per_s: f64,
    /// Median.
    step_ms: f64,
    /// Mean processor time of a step over all threads: steadier than `step_ms` on a busy machine.
    /// `None` where the system does not report it.
    step_cpu_ms: Option<f64>,
    /// Peak resident size of this process so far; `None` where the system does not report it.
    peak_rss_mb: Option<f64>,
    /// Operations by the network's definition: see `ModelSpec::training_flops`.
    gflops: f64,
    /// Best speed of a matrix product on one core.
    gemm_gflops: f64,
    /// `gflops` divided by `threads` times `gemm_gflops`.
    gemm_share: f64,
    /// Burn's flex in the same run; `None` unless the fused engine was measured.
    burn_images_per_s: Option<f64>,
    /// Speed relative to Burn's flex.
    burn_ratio: Option<f64>,
}

/// Runs `fl bench train`.
pub fn run(args: &TrainArgs, json: bool) -> anyhow::Result<()> {
    check(args)?;
    let data = match &args.dataset {
        Some(spec) => Some(fl_datasets::load(spec, args.data_dir.as_deref(), Part::Train)?),
        None => None,
    };
    let spec = spec(&args.model, args.model_dim, data.as_ref())?;
    if args.print_spec {
        println!("{}", spec.to_json());
        return Ok(());
    }
    let data = match data {
        Some(data) => Some(Arc::new(data).cut_for(&spec.input)?),
        None => None,
    };
    let backend = args.backend.for_spec(&spec);
    let measure = |backend| measure(&mut *spec.learner(backend, args.threads)?, &spec, args, data.as_deref());
    let Step { median_s: step_s, cpu_s } = measure(backend)?;
    let peak_rss_mb = process::memory_mb("VmHWM");
    let compared = backend == Backend::Fused && !args.skip_burn;
    let burn_step_s = if compared { Some(measure(Backend::Flex)?.median_s) } else { None };
    let images_per_s = args.batch_size as f64 / step_s;
    let gflops = spec.training_flops()? * images_per_s / 1e9;
    let gemm_gflops = measure_gemm_gflops();
    let measured = Measured {
        model: &spec.name,
        backend: backend.to_string(),
        threads: args.threads,
        batch_size: args.batch_size,
        params: spec.num_parameters(),
        images_per_s,
        step_ms: step_s * 1e3,
        step_cpu_ms: cpu_s.map(|seconds| seconds * 1e3),
        peak_rss_mb,
        gflops,
        gemm_gflops,
        gemm_share: gflops / (gemm_gflops * args.threads as f64),
        burn_images_per_s: burn_step_s.map(|step_s| args.batch_size as f64 / step_s),
        burn_ratio: burn_step_s.map(|burn| burn / step_s),
    };
    if json { output::json_line(&measured) } else { print(&measured, samples_name(&spec.input)) }
}

fn check(args: &TrainArgs) -> Result<(), SettingError> {
    for (setting, value) in [("--threads", args.threads), ("--batch-size", args.batch_size)] {
        whole(setting, value as u64, 1, 1_000_000)?;
    }
    number("--seconds", args.seconds, 0.01, 3600.0)
}

fn samples_name(input: &Input) -> &'static str {
    match input {
        Input::Image { .. } => "images",
        Input::Tokens { .. } => "sequences",
        Input::Vector { .. } => "samples",
    }
}

fn print(measured: &Measured<'_>, samples: &str) -> anyhow::Result<()> {
    println!(
        "{}, {} parameters, {}, threads {}, batches of {}",
        measured.model, measured.params, measured.backend, measured.threads, measured.batch_size
    );
    println!(
        "{:.0} {samples}/s   {:.3} ms a step   {:.1} GFLOP/s, {:.0} % of the cores' matrix product ({:.1} each)",
        measured.images_per_s,
        measured.step_ms,
        measured.gflops,
        measured.gemm_share * 100.0,
        measured.gemm_gflops,
    );
    if let (Some(burn), Some(ratio)) = (measured.burn_images_per_s, measured.burn_ratio) {
        println!("Burn's flex {burn:.0} {samples}/s: the fused engine is {ratio:.2} times as fast");
    }
    if let Some(peak) = measured.peak_rss_mb {
        println!("peak resident size {peak:.1} MB");
    }
    Ok(())
}

/// What a step takes.
struct Step {
    median_s: f64,
    cpu_s: Option<f64>,
}

fn measure(
    learner: &mut dyn Learner,
    spec: &ModelSpec,
    args: &TrainArgs,
    data: Option<&Dataset>,
) -> anyhow::Result<Step> {
    if let Some(pattern) = &args.trainable {
        let refused = |reason| SettingError::new("--trainable", pattern, reason);
        let trained = pattern.ranges(learner.layout()).map_err(refused)?;
        learner.set_trainable(&trained);
    }
    learner.load(&init_parameters(spec, SEED));
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let noise = Noise::new(spec, args.batch_size, &mut rng);
    let (mut indices, mut samples) = (vec![0; args.batch_size], Samples::new());
    let config = OptimizerConfig::default();
    let mut times = Vec::new();
    let (mut began, mut cpu_before) = (Instant::now(), None);
    for step in 0.. {
        if step == WARM_UP {
            times.clear();
            (began, cpu_before) = (Instant::now(), process::threads_cpu_s());
        }
        if let Some(data) = data {
            indices.fill_with(|| rng.random_range(0..data.train.len() as u32));
        }
        let start = Instant::now();
        if let Some(data) = data {
            data.train.gather(&indices, &data.normalization, &mut samples);
        }
        let batch = match data {
            Some(_) => Batch::new(samples.inputs(), samples.targets()),
            None => noise.batch(),
        };
        learner.step(batch, &config)?;
        times.push(start.elapsed().as_secs_f64());
        if step > WARM_UP && began.elapsed() > Duration::from_secs_f64(args.seconds) {
            break;
        }
    }
    let cpu_s =
        process::threads_cpu_s().zip(cpu_before).map(|(after, before)| (after - before) / times.len() as f64);
    times.sort_by(f64::total_cmp);
    Ok(Step { median_s: times[times.len() / 2], cpu_s })
}

/// The network: on the data set, or on noise of the kind that it takes.
fn spec(model: &str, model_dim: usize, data: Option<&Dataset>) -> anyhow::Result<ModelSpec> {
    if let Some(data) = data {
        return Ok(ModelSpec::load(model, &data.input, &data.task, model_dim)?);
    }
    let image = |shape: [usize; 3]| (Input::Image { shape: shape.to_vec() }, Task::classes(10));
    let (input, task) = match model {
        "resnet20" | "vgg11" | "mobilenet_small" => image([3, 32, 32]),
        "char_lstm" | "tiny_transformer" => {
            (Input::Tokens { shape: vec![80], vocab: 80 }, Task::LanguageModel)
        }
        "linear_regression" => (Input::Vector { shape: vec![64] }, Task::Regression { outputs: 1 }),
        _ => image([1, 28, 28]),
    };
    // A file may be for inputs of its own.
    match model.contains(['.', '/', '\\']) {
        true => Ok(ModelSpec::read_file(model, Some((&input, &task)))?),
        false => Ok(ModelSpec::load(model, &input, &task, model_dim)?),
    }
}

/// One batch of noise.
struct Noise {
    numbers: Vec<f32>,
    tokens: Vec<u32>,
    classes: Vec<u32>,
    targets: Vec<f32>,
}

impl Noise {
    fn new(spec: &ModelSpec, samples: usize, rng: &mut ChaCha8Rng) -> Self {
        let inputs = samples * spec.num_features();
        let targets = samples * spec.task.targets_per_sample(&spec.input);
        let mut noise =
            Self { numbers: Vec::new(), tokens: Vec::new(), classes: Vec::new(), targets: Vec::new() };
        match spec.input {
            Input::Tokens { vocab, .. } => {
                noise.tokens = (0..inputs).map(|_| rng.random_range(0..vocab as u32)).collect();
            }
            _ => noise.numbers = (0..inputs).map(|_| rng.random_range(-1.0..1.0)).collect(),
        }
        match spec.task {
            Task::Classification { .. } | Task::LanguageModel => {
                noise.classes =
                    (0..targets).map(|_| rng.random_range(0..spec.num_classes() as u32)).collect();
            }
            Task::Regression { .. } | Task::Multilabel { .. } => {
                noise.targets = (0..targets).map(|_| f32::from(rng.random::<bool>())).collect();
            }
        }
        noise
    }

    fn batch(&self) -> Batch<'_> {
        let inputs = match self.tokens.is_empty() {
            true => Inputs::Numbers(&self.numbers),
            false => Inputs::Tokens(&self.tokens),
        };
        let targets = match self.classes.is_empty() {
            true => Targets::Numbers(&self.targets),
            false => Targets::Classes(&self.classes),
        };
        Batch::new(inputs, targets)
    }
}
