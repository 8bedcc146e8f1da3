//! `fl eval`: accuracy and loss of a model file.

use crate::output;
use anyhow::Context;
use clap::Args;
use fl_app::{exit::BadInput, setting};
use fl_datasets::{DatasetSpec, Part, Samples};
use fl_model::{Backend, Batch, GlobalModel, spec::describe};
use fl_protocol::Task;
use serde::Serialize;
use std::{fs, path::PathBuf, sync::Arc};

/// Arguments of `fl eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// Model file, as `GET /global` and `fl run` write it.
    file: PathBuf,

    /// Data set whose test part is used: digits, shakespeare, fashion-mnist, mnist, cifar10, idx:DIR, images:DIR@WxH,
    /// csv:FILE, safetensors:FILE, text:FILE, bytes:FILE.
    #[arg(long, default_value = "digits")]
    dataset: DatasetSpec,

    /// Columns of a csv file that the model predicts, as they were given for its training.
    #[arg(long, value_name = "COLUMNS")]
    target: Option<String>,

    /// Folder with the data set's files, if they are not where the system's package puts them.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Threads of the forward pass.
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

#[derive(Debug, Serialize)]
struct Evaluated<'a> {
    file: String,
    dataset: String,
    model: &'a str,
    round: u64,
    params: usize,
    samples: u64,
    /// None for a regression.
    accuracy: Option<f64>,
    /// Nats of a class or token, squares of a regression.
    loss: f64,
    /// Mean absolute difference of a regression.
    #[serde(skip_serializing_if = "Option::is_none")]
    absolute_error: Option<f64>,
    /// `e^loss` of a language model.
    #[serde(skip_serializing_if = "Option::is_none")]
    perplexity: Option<f64>,
}

/// Runs `fl eval`.
pub fn run(args: &EvalArgs, json: bool) -> anyhow::Result<()> {
    let path = args.file.display();
    let bytes = fs::read(&args.file).map_err(|error| {
        BadInput(format!("cannot read the model file {path}: {error}; give the path of a global.safetensors"))
    })?;
    let global = GlobalModel::from_safetensors(&bytes).with_context(|| format!("model file {path}"))?;
    let spec = global.network.known()?;
    let dataset = setting::dataset(&args.dataset.to_string(), args.target.clone())?;
    let data = Arc::new(fl_datasets::load(&dataset, args.data_dir.as_deref(), Part::Test)?);
    let data = data.cut_for(&spec.input)?;
    if !spec.accepts(&data.input, &data.task) || data.num_classes() > spec.num_classes() {
        return Err(BadInput(format!(
            "{path} is for {}, but {} has {}: give the data set that it was trained on with --dataset",
            describe(&spec.input, &spec.task),
            data.name,
            describe(&data.input, &data.task)
        ))
        .into());
    }
    let mut learner = spec.learner(Backend::Auto, args.threads)?;
    learner.load(&global.parameters);
    // The file's normalisation, with which the model was trained, not that of the loaded data set.
    let mut samples = Samples::new();
    // A text may use fewer characters than the model knows, under other numbers.
    let classes = data.class_map(&global.names)?;
    let evaluation = fl_model::evaluate(data.test.len(), |indices| {
        data.test.gather(indices, &global.normalization, &mut samples);
        if let Some(classes) = &classes {
            samples.renumber(classes);
        }
        learner.evaluate(Batch::new(samples.inputs(), samples.targets()))
    })?;
    let result = Evaluated {
        file: path.to_string(),
        dataset: data.name.clone(),
        model: &spec.name,
        round: global.round,
        params: global.parameters.len(),
        samples: evaluation.samples,
        accuracy: evaluation.accuracy,
        loss: evaluation.loss,
        absolute_error: evaluation.absolute_error,
        perplexity: matches!(spec.task, Task::LanguageModel).then(|| evaluation.loss.exp()),
    };
    if json {
        return output::json_line(&result);
    }
    let metrics = match (result.accuracy, result.absolute_error, result.perplexity) {
        (Some(accuracy), _, Some(perplexity)) => {
            format!("accuracy {accuracy:.4}   {:.4} nats per token   perplexity {perplexity:.2}", result.loss)
        }
        (Some(accuracy), ..) => format!("accuracy {accuracy:.4}   loss {:.4}", result.loss),
        (None, error, _) => {
            format!("mean squared error {:.4}   mean absolute error {:.4}", result.loss, error.unwrap_or(0.0))
        }
    };
    println!(
        "{}: {} of round {}, {} parameters\n{metrics}   on {} test samples of {}",
        result.file, result.model, result.round, result.params, result.samples, result.dataset
    );
    Ok(())
}
