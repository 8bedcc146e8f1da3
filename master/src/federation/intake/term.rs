//! A checked update as a term of the sum.

use super::checks::{Clip, Rejection, UpdateChecks, check_control, clip_factor, local_norm};
use crate::federation::{
    Strategy,
    aggregate::{Collector, Vector},
    step::UpdateWeight,
};
use fl_protocol::{ErrorCode, Header, Kind, Update, UpdateMeta};

impl UpdateChecks<'_> {
    /// Calls `f` with the term that a body, whose header has been read, stands for in the open round `round`: its
    /// own, or that of the worker's last update if it is a notice.
    ///
    /// # Errors
    /// What is wrong with it, or what `f` says.
    pub fn with_term<T>(
        &self,
        header: &Header,
        body: &[u8],
        round: u64,
        f: impl FnOnce(&Term<'_>) -> Result<T, Rejection>,
    ) -> Result<T, Rejection> {
        if header.kind() == Kind::Update {
            return f(&Term::new(header, body, self, round)?);
        }
        let notice = header.meta().clone();
        let last = self.cache.get(&notice).ok_or_else(|| {
            Rejection::new(ErrorCode::NoLastUpdate, "that update is not kept here: send this round's instead")
        })?;
        let mut term = Term::new(&Header::read(&last)?, &last, self, round)?;
        term.reused_bytes = Some(last.len() as u64);
        // The weight is that of the update which counts; what describes the round is new.
        term.meta = UpdateMeta {
            num_samples: term.meta.num_samples,
            local_steps: term.meta.local_steps,
            local_norm: term.meta.local_norm,
            ..notice
        };
        f(&term)
    }
}

/// A checked update as a term of the sum. The same body, checks and round always give the same term.
#[derive(Debug)]
pub struct Term<'a> {
    /// Who sent it and what it counts for: `num_samples` is at most `MAX_WEIGHT`.
    pub meta: UpdateMeta,
    /// `|a_k|_1` of FedNova: the local steps, or what the worker says they are worth.
    pub local_norm: f64,
    /// What its norms are clipped by.
    pub clip: Clip,
    /// Size of the worker's last update, if that counts again.
    pub reused_bytes: Option<u64>,
    update: Update<'a>,
    /// Euclidean norm after clipping; 0 where it is not needed.
    norm: f64,
    /// Weight in the sum, but for the clipping.
    weight: f64,
}

impl<'a> Term<'a> {
    /// Checks the tensors of a body whose header has been read. `round` is the open round.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(
        header: &Header,
        body: &'a [u8],
        checks: &UpdateChecks<'a>,
        round: u64,
    ) -> Result<Self, Rejection> {
        let settings = checks.settings;
        let strategy = settings.strategy;
        let update = header.update(body, checks.layout)?;
        let mut meta = update.meta.clone();
        meta.num_samples = meta.num_samples.min(settings.max_weight.unwrap_or(u64::MAX));
        check_control(&update, strategy)?;
        let local_norm = local_norm(&meta, strategy)?;
        let weight = match strategy.needs_individual_updates() {
            true => 1.0,
            false => strategy.weight(meta.num_samples, local_norm, round.saturating_sub(meta.round)),
        };
        let judged = checks.accepted.is_none() && settings.max_update_norm.is_some();
        let norm = match judged || strategy == Strategy::FedNova {
            true => norm_of(|f| update.for_each_chunk(f)),
            false => 0.0,
        };
        let clip = match checks.accepted {
            Some(clip) => clip,
            None if judged => {
                let applied = norm * scale(checks, local_norm);
                let control = norm_of(|f| update.for_each_control_chunk(f));
                Clip {
                    update: clip_factor(applied, settings, "update's")?,
                    control: clip_factor(control, settings, "control variate's")?,
                }
            }
            None => Clip::NONE,
        };
        Ok(Self { meta, local_norm, clip, reused_bytes: None, update, norm: norm * clip.update, weight })
    }

    /// What the server's step needs to know of it.
    pub fn weight(&self) -> UpdateWeight {
        UpdateWeight { num_samples: self.meta.num_samples, local_norm: self.local_norm, norm: self.norm }
    }

    /// Calls `f` with what the collector takes: the update, and the change of the control variate.
    fn vectors<T>(&self, f: impl FnOnce(&Vector<'_>, Option<&Vector<'_>>) -> T) -> T {
        let update = Vector {
            weight: self.weight * self.clip.update,
            max_abs: self.update.max_abs,
            pieces: &|f| self.update.for_each_piece(f),
        };
        let control = Vector {
            weight: self.weight * self.clip.control,
            max_abs: self.update.control_max_abs,
            pieces: &|f| self.update.for_each_control_piece(f),
        };
        f(&update, (!self.update.control.is_empty()).then_some(&control))
    }

    /// Adds it.
    ///
    /// # Errors
    /// If the sum could overflow; it is unchanged then.
    pub fn add_to(&self, collector: &Collector) -> Result<(), Rejection> {
        self.vectors(|update, control| collector.add(&self.meta.worker_id, update, control))
            .map_err(|error| Rejection::new(ErrorCode::NormTooLarge, error.to_string()))
    }

    /// Takes it out again.
    pub fn take_from(&self, collector: &Collector) {
        self.vectors(|update, control| collector.remove(&self.meta.worker_id, update, control));
    }
}

/// What the server's step will scale the update by, as far as that is known now: FedNova scales an update of
/// few local steps up to the steps of the round. `MAX_UPDATE_NORM` holds for what is applied.
fn scale(checks: &UpdateChecks<'_>, local_norm: f64) -> f64 {
    match checks.settings.strategy {
        Strategy::FedNova => (checks.effective_steps.unwrap_or(1.0) / local_norm).max(1.0),
        _ => 1.0,
    }
}

/// The Euclidean norm of a vector that comes in chunks.
fn norm_of(for_each_chunk: impl FnOnce(&mut dyn FnMut(usize, &[f32]))) -> f64 {
    let mut squares = 0.0;
    for_each_chunk(&mut |_, values| squares += values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>());
    squares.sqrt()
}
