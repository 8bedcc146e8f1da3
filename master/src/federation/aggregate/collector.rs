//! Where the updates of the open round go until the next model is made of them.

use super::{ExactSum, SumOverflow};
use crate::federation::Strategy;
use fl_protocol::WorkerId;
use fl_quant::Piece;
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Feeds a vector piece by piece: `f(offset, piece)`.
pub type Pieces<'a> = &'a dyn Fn(&mut dyn FnMut(usize, Piece<'_>));

/// One vector to be collected.
pub struct Vector<'a> {
    /// Its factor.
    pub weight: f64,
    /// A bound of its values' magnitudes.
    pub max_abs: f32,
    /// Its values.
    pub pieces: Pieces<'a>,
}

/// The open round's updates, as their strategy needs them. None of it depends on the order of arrival.
#[derive(Debug)]
pub struct Collector {
    /// Sum of the weighted updates; without elements if they are kept.
    sum: ExactSum,
    /// Sum of the changes of the control variates; without elements unless the strategy uses them.
    control: ExactSum,
    /// The updates themselves, by worker; empty unless the strategy keeps them.
    kept: Mutex<BTreeMap<WorkerId, Vec<f32>>>,
    parameters: usize,
    keeps: bool,
}

impl Collector {
    /// Nothing collected yet, for a model of `parameters` parameters.
    pub fn new(strategy: Strategy, parameters: usize) -> Self {
        let keeps = strategy.keeps_updates();
        let control = if strategy.uses_control() { parameters } else { 0 };
        Self {
            sum: ExactSum::new(if keeps { 0 } else { parameters }),
            control: ExactSum::new(control),
            kept: Mutex::default(),
            parameters,
            keeps,
        }
    }

    /// Takes an update in, and the change of its worker's control variate where the strategy uses it.
    ///
    /// # Errors
    /// If a sum has no room for it; nothing has changed then.
    pub fn add(
        &self,
        worker: &WorkerId,
        update: &Vector<'_>,
        control: Option<&Vector<'_>>,
    ) -> Result<(), SumOverflow> {
        if self.keeps {
            // `weight` is the factor of the clipping alone: these strategies do not weigh.
            let mut values = vec![0.0; self.parameters];
            (update.pieces)(&mut |offset, piece| {
                piece.decode_into(&mut values[offset..offset + piece.len()])
            });
            values.iter_mut().for_each(|value| *value = (f64::from(*value) * update.weight) as f32);
            self.kept().insert(worker.clone(), values);
            return Ok(());
        }
        self.sum.add(update.weight, update.max_abs, |f| (update.pieces)(f))?;
        if let Some(control) = control
            && let Err(overflow) = self.control.add(control.weight, control.max_abs, |f| (control.pieces)(f))
        {
            self.sum.subtract(update.weight, update.max_abs, |f| (update.pieces)(f));
            return Err(overflow);
        }
        Ok(())
    }

    /// Takes an update out again: it is then as if it had never been there.
    pub fn remove(&self, worker: &WorkerId, update: &Vector<'_>, control: Option<&Vector<'_>>) {
        if self.keeps {
            self.kept().remove(worker);
            return;
        }
        self.sum.subtract(update.weight, update.max_abs, |f| (update.pieces)(f));
        if let Some(control) = control {
            self.control.subtract(control.weight, control.max_abs, |f| (control.pieces)(f));
        }
    }

    /// Back to nothing collected.
    pub fn reset(&self) {
        self.sum.reset();
        self.control.reset();
        self.kept().clear();
    }

    /// The sum of the weighted updates.
    pub fn sum(&self) -> &ExactSum {
        &self.sum
    }

    /// The sum of the changes of the control variates.
    pub fn control(&self) -> &ExactSum {
        &self.control
    }

    /// The kept updates in the order of the workers' names.
    pub fn kept(&self) -> MutexGuard<'_, BTreeMap<WorkerId, Vec<f32>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
