//! A worker that trains a hand-written Burn module: `own-module init FILE` writes its first parameters,
//! `own-module eval FILE` evaluates a model of the master's, and without either it works as `fl-worker` does.

use anyhow::Context;
use burn::{
    module::Module,
    nn::{
        GroupNorm, GroupNormConfig, Linear, LinearConfig, PaddingConfig2d,
        conv::{Conv2d, Conv2dConfig},
    },
    tensor::{Device, Tensor, activation::relu},
};
use clap::Parser;
use fl_datasets::{Dataset, DatasetSpec, Part, Samples};
use fl_model::{
    Batch, GlobalModel, Learner,
    burn::{BurnLearner, BurnNetwork, NetworkInput},
};
use fl_protocol::{Input, Task};

/// A convolution and a normalisation whose result is added to what they were given.
#[derive(Module, Debug)]
struct Skip {
    conv: Conv2d,
    norm: GroupNorm,
}

#[derive(Module, Debug)]
struct Digits {
    stem: Conv2d,
    blocks: Vec<Skip>,
    head: Linear,
}

const CHANNELS: usize = 16;

impl Digits {
    fn new(device: &Device) -> Self {
        let conv = |from| {
            let padding = PaddingConfig2d::Explicit(1, 1, 1, 1);
            Conv2dConfig::new([from, CHANNELS], [3, 3]).with_padding(padding).init(device)
        };
        let skip = |_| Skip { conv: conv(CHANNELS), norm: GroupNormConfig::new(4, CHANNELS).init(device) };
        Self {
            stem: conv(1),
            blocks: (0..2).map(skip).collect(),
            head: LinearConfig::new(2 * CHANNELS, 10).init(device),
        }
    }
}

impl BurnNetwork for Digits {
    fn forward(&self, input: NetworkInput) -> Tensor<2> {
        let mut x = relu(self.stem.forward(input.images()));
        for Skip { conv, norm } in &self.blocks {
            x = x.clone() + relu(norm.forward(conv.forward(x)));
        }
        let x = x.flatten::<3>(2, 3);
        // The mean and the largest value of each channel: a second way around.
        let [mean, most] = [x.clone().mean_dim(2), x.max_dim(2)].map(|x| x.squeeze_dim::<2>(2));
        self.head.forward(Tensor::cat(vec![mean, most], 1))
    }
}

fn learner() -> BurnLearner<Digits> {
    let device = Device::flex();
    device.seed(1);
    BurnLearner::new(Digits::new(&device), Input::numbers(&[1, 8, 8]), Task::classes(10), device)
}

fn evaluate(file: &str) -> anyhow::Result<()> {
    let model = GlobalModel::from_safetensors(&std::fs::read(file).context(file.to_owned())?)?;
    let data: Dataset = fl_datasets::load(&DatasetSpec::Digits, None, Part::Test)?;
    let mut learner = learner();
    learner.load(&model.parameters);
    let mut samples = Samples::new();
    let found = fl_model::evaluate(data.test.len(), |indices| {
        data.test.gather(indices, &data.normalization, &mut samples);
        learner.evaluate(Batch::new(samples.inputs(), samples.targets()))
    })?;
    println!(
        "round {}: accuracy {:.4} on {} samples",
        model.round,
        found.accuracy.unwrap_or(f64::NAN),
        found.samples
    );
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["init", file] => Ok(std::fs::write(file, learner().to_safetensors()?)?),
        ["eval", file] => evaluate(file),
        _ => {
            let config = fl_worker::Args::parse().check()?;
            let make = |_: &GlobalModel| Ok(Box::new(learner()) as Box<dyn Learner>);
            let done = fl_worker::run_with(config, None, make, std::future::pending(), None).await?;
            println!("{} rounds", done.rounds);
            Ok(())
        }
    }
}
