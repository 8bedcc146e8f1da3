//! Builds a federation from the settings: the rules of its rounds, and the tasks of its workers.

use crate::{
    federation::{Global, evaluation::EvaluationRules, round::Rules},
    settings::Config,
};
use fl_protocol::{TaskAction, TaskBody};
use fl_quant::Bits;

/// The rules that the settings make.
pub fn rules(config: &Config) -> Rules {
    let Config { round, aggregation, .. } = config;
    Rules {
        target: round.min_clients,
        deadline_s: round.deadline_s,
        min_at_deadline: round.min_at_deadline,
        sample: round.sample(),
        pause_s: round.pause_s,
        task_timeout_s: round.task_timeout_s,
        rounds: round.rounds,
        seed: config.seed,
        remember: config.store.keep_rounds,
        max_staleness: aggregation.strategy.is_asynchronous().then_some(aggregation.max_staleness),
    }
}

/// Which models the workers evaluate.
pub fn evaluation_rules(config: &Config) -> EvaluationRules {
    EvaluationRules {
        every: config.evaluation.evaluate_every,
        fraction: config.evaluation.evaluate_fraction,
        rounds: config.round.rounds,
        seed: config.seed,
    }
}

/// The task of a worker for the round that starts from `global`.
pub fn task(config: &Config, global: &Global, action: TaskAction, deadline_s: Option<f64>) -> TaskBody {
    let hints = config.task.clone();
    let update_bytes = hints.update_bytes(config.round.min_clients);
    let (bits, target_nmse) = match hints.bits {
        Some(Bits::Width(bits)) => (Some(bits), None),
        Some(Bits::Auto) => (None, Some(hints.target_nmse)),
        None => (None, None),
    };
    TaskBody {
        action,
        round: global.round,
        etag: global.etag.clone(),
        local_steps: hints.local_steps,
        local_epochs: hints.local_epochs,
        batch_size: hints.batch_size,
        lr: hints.lr.map(|lr| hints.lr_schedule.at(lr, global.round)),
        mu: hints.mu,
        quantizer: hints.quantizer,
        bits,
        target_nmse,
        update_bytes,
        lazy_below: global.lazy_below,
        control: global.control.is_some(),
        needs_sgd: config.aggregation.strategy.needs_sgd(),
        trainable: config.model.trainable.as_ref().map(ToString::to_string),
        local_layers: config.model.local_layers.as_ref().map(ToString::to_string),
        deadline_s,
        evaluate_every: Some(config.evaluation.evaluate_every)
            .filter(|every| *every > 0 && action == TaskAction::Train),
        config: hints.client_config.filter(|_| action == TaskAction::Train),
    }
}

/// The task of a worker that evaluates `global` on data of its own.
pub fn evaluation_task(config: &Config, global: &Global) -> TaskBody {
    TaskBody {
        action: TaskAction::Evaluate,
        etag: global.etag.clone(),
        evaluate_every: Some(config.evaluation.evaluate_every),
        config: config.task.client_config.clone(),
        trainable: config.model.trainable.as_ref().map(ToString::to_string),
        ..TaskBody::train(global.round)
    }
}
