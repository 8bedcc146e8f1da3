//! Training and evaluation over all cores, one engine per thread.

use super::{attack::tamper, clients::Clients, server::Server};
use anyhow::Context;
use bytes::Bytes;
use fl_datasets::{Dataset, Samples};
use fl_master::{
    Compact, Global,
    evaluation::{EvaluationRules, Reported, spreads},
    round::Contribution,
};
use fl_model::{Batch, BatchEvaluation, Evaluation, GlobalModel, ModelError};
use fl_protocol::ClientEvaluation;
use fl_worker::{ClientMemory, Download, Engine, Plan, Sent, StartingPoint, metrics_of};
use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    sync::{Mutex, PoisonError},
    thread,
};

/// Test samples that one thread evaluates at a time.
const EVALUATED: usize = 512;

/// A client's download: the model, with SCAFFOLD also the control variate.
pub struct Base {
    /// The model.
    pub model: GlobalModel,
    /// The parameters that clients receive, if the download is quantized.
    received: Option<Vec<f32>>,
    /// The server's control variate.
    pub control: Option<Vec<f32>>,
    /// Size of both files, in bytes.
    pub bytes: u64,
}

impl Base {
    /// The download of `global`.
    ///
    /// # Errors
    /// Infallible for models made by the core.
    pub fn of(global: &Global, down: Option<Download>) -> Result<Self, ModelError> {
        let control = global.control.as_ref().map(|file| GlobalModel::from_safetensors(file)).transpose()?;
        let compact =
            down.map(|Download { scheme, bits }| global.quantized(Compact { scheme, bits })).transpose()?;
        let received = compact.as_ref().map(|file| GlobalModel::from_safetensors(file)).transpose()?;
        let bytes =
            compact.as_ref().unwrap_or(&global.bytes).len() + global.control.as_ref().map_or(0, Bytes::len);
        Ok(Self {
            model: GlobalModel::from_safetensors(&global.bytes)?,
            received: received.map(|model| model.parameters),
            control: control.map(|control| control.parameters),
            bytes: bytes as u64,
        })
    }
}

/// One client's work in a round.
pub struct Job {
    /// The client.
    pub client: usize,
    /// Number of its earlier tries in this round.
    pub attempt: u64,
    /// How it trains and encodes.
    pub plan: Plan,
}

/// The result of a [`Job`].
pub enum Outcome {
    /// The update is in the sum already, and its client's state is kept.
    Counted(Contribution),
    /// The update is offered to the round when it arrives.
    Ready(Bytes, ClientMemory),
    /// The training diverged: there is no update.
    Diverged,
}

/// Runs `run` on every job, over all engines; the results are in the jobs' order.
pub fn parallel<T: Send, R: Send>(
    engines: &mut [Engine],
    jobs: Vec<T>,
    run: impl Fn(&mut Engine, T) -> R + Sync,
) -> Vec<R> {
    let count = jobs.len();
    let queue = Mutex::new(jobs.into_iter().enumerate());
    let results = Mutex::new((0..count).map(|_| None).collect::<Vec<Option<R>>>());
    let work = |engine: &mut Engine| {
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((index, job)) = next else { return };
            let result = run(engine, job);
            results.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(result);
        }
    };
    match engines {
        [engine] => work(engine),
        engines => thread::scope(|scope| {
            for engine in engines.iter_mut() {
                scope.spawn(|| work(engine));
            }
        }),
    }
    results.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().flatten().collect()
}

/// Trains one client. With `eager` its update is added to the sum at once, so that only one update per thread
/// is in memory.
///
/// # Errors
/// If its state cannot be read or written, or the update is refused.
pub fn train(
    engine: &mut Engine,
    job: &Job,
    base: &Base,
    clients: &Clients,
    server: &Server,
    eager: bool,
) -> anyhow::Result<Outcome> {
    let mut state = clients.state(job.client).context("the carried state of a client cannot be read")?;
    let from = StartingPoint {
        round: base.model.round,
        parameters: base.received.as_ref().unwrap_or(&base.model.parameters),
        control: base.control.as_deref(),
    };
    let update = match engine.train(&state, &from, &job.plan, || ControlFlow::Continue(())) {
        Ok(Some(update)) => update,
        Ok(None) | Err(ModelError::Diverged) => return Ok(Outcome::Diverged),
        Err(error) => return Err(error.into()),
    };
    let (body, sent) = match update.notice.filter(|notice| server.core.takes_notice(notice)) {
        Some(notice) => (notice, Sent::Notice),
        None => match clients.factor(job.client) {
            None => (update.body, Sent::Update),
            Some(factor) => {
                match tamper(&update.body, &base.model.network.layout(), &job.plan.encoding, factor) {
                    Ok(tampered) => (tampered.into(), Sent::Update),
                    Err(_) => return Ok(Outcome::Diverged),
                }
            }
        },
    };
    engine.settle(&mut state, sent);
    if !eager {
        return Ok(Outcome::Ready(body, state.memory));
    }
    let Some(contribution) = server.add(&body) else { return Ok(Outcome::Diverged) };
    clients.settle(job.client, state.memory).context("the carried state of a client cannot be written")?;
    Ok(Outcome::Counted(contribution))
}

/// Lets the clients that are chosen evaluate the model that they receive, each on its own data.
///
/// # Errors
/// If the data do not fit the network.
pub fn evaluate_by_clients(
    engines: &mut [Engine],
    base: &Base,
    clients: &Clients,
    rules: &EvaluationRules,
) -> Result<Option<ClientEvaluation>, ModelError> {
    let round = base.model.round;
    let parameters = base.received.as_ref().unwrap_or(&base.model.parameters);
    let chosen = (0..clients.len()).filter(|client| rules.chooses(clients.name(*client), round)).collect();
    let found = parallel(engines, chosen, |engine, client| {
        engine.evaluate(&clients.evaluator(client), parameters).map(|found| (client, found))
    });
    let mut reports = BTreeMap::new();
    for result in found {
        let (client, Some(evaluation)) = result? else { continue };
        let values = metrics_of(&evaluation).iter().map(|(name, value)| (name.into(), value)).collect();
        let report = Reported { num_samples: evaluation.samples, values };
        reports.insert(clients.name(client).clone(), report);
    }
    Ok((!reports.is_empty()).then(|| ClientEvaluation {
        clients: reports.len() as u64,
        num_samples: reports.values().map(|report| report.num_samples).sum(),
        metrics: spreads(&reports),
    }))
}

/// Evaluates a model on the test set.
///
/// # Errors
/// If the data do not fit the network.
pub fn evaluate(
    engines: &mut [Engine],
    base: &Base,
    data: &Dataset,
) -> Result<Option<Evaluation>, ModelError> {
    if data.test.is_empty() {
        return Ok(None);
    }
    for engine in engines.iter_mut() {
        engine.learner().load(&base.model.parameters);
    }
    let all: Vec<u32> = (0..data.test.len() as u32).collect();
    let parts = parallel(engines, all.chunks(EVALUATED).collect(), |engine, indices| {
        let mut samples = Samples::new();
        data.test.gather(indices, &base.model.normalization, &mut samples);
        engine.learner().evaluate(Batch::new(samples.inputs(), samples.targets()))
    });
    let mut sums = BatchEvaluation::default();
    for part in parts {
        sums += part?;
    }
    Ok(Some(sums.into()))
}
