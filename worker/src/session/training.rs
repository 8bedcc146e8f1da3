//! What happens on the training thread.

use crate::{
    ballast::Ballast,
    client_state::ClientMemory,
    error::WorkerError,
    local_client::LocalClient,
    pauses::Stop,
    plan::{Plan, StartingPoint},
    settings::Config,
    state_file::StateFile,
    update::LocalUpdate,
};
use fl_app::SettingError;
use fl_model::{GlobalModel, ModelError, TensorPattern};
use std::ops::ControlFlow;
use tracing::{info, warn};

/// What a training thread borrows: it comes back with the result.
#[derive(Default)]
pub(super) struct Trainee {
    /// None before the first round.
    pub(super) local: Option<LocalClient>,
    pub(super) ballast: Ballast,
}

/// How a training ended.
pub(super) enum Trained {
    /// With an update of a round.
    Update(u64, LocalUpdate),
    /// With values that are not finite.
    Diverged(u64),
    /// Not begun: model and control variate are of different rounds.
    OtherRounds,
    /// Shutdown was requested.
    Stopped,
}

/// Sets what is trained and what is personal: this worker's own `LOCAL_LAYERS` win over the master's.
pub(super) fn choose_parts(
    local: &mut LocalClient,
    config: &Config,
    trainable: Option<&str>,
    proposed: Option<&str>,
) -> Result<(), WorkerError> {
    let own = config.training.local_layers.as_ref().map(TensorPattern::as_str);
    local.set_parts(trainable, own.or(proposed)).map_err(|refused| match own {
        Some(own) if refused.setting == "LOCAL_LAYERS" => {
            SettingError::new("LOCAL_LAYERS", own, refused.reason).into()
        }
        _ => WorkerError::BadTask { reason: refused.to_string() },
    })
}

/// What the file has for this model. A file that cannot be used is named and left alone until the next
/// acknowledged update replaces it.
pub(super) fn restore(file: &StateFile, global: &GlobalModel) -> Option<ClientMemory> {
    let path = file.path().display();
    match file.load(&global.network.layout()) {
        Ok(None) => None,
        Ok(Some(state)) if global.round < state.round => {
            warn!(%path, round = global.round, saved_round = state.round, "the state is of a later round than the model, it is ignored");
            None
        }
        Ok(Some(state)) => {
            info!(%path, saved_round = state.round, "going on with the state of the last run");
            Some(state.memory)
        }
        Err(error) => {
            warn!(%path, %error, "the state of the last run is ignored");
            None
        }
    }
}

pub(super) fn train_round(
    trainee: &mut Trainee,
    from: &StartingPoint<'_>,
    plan: &Plan,
    stop: &Stop,
) -> Result<Trained, WorkerError> {
    let Some(local) = &mut trainee.local else { return Ok(Trained::OtherRounds) };
    let trained = local.train(from, plan, || match stop.is_set() {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    });
    match trained {
        Ok(Some(update)) => Ok(Trained::Update(from.round, update)),
        Ok(None) => Ok(Trained::Stopped),
        Err(ModelError::Diverged) => Ok(Trained::Diverged(from.round)),
        Err(error) => Err(error.into()),
    }
}
