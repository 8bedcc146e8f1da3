//! Collects the updates of the open round, as a sum or one by one.

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

/// The open round's updates. Nothing depends on the order of their arrival.
#[derive(Debug)]
pub struct Collector {
    parameters: usize,
    updates: Updates,
    /// Sum of the changes of the control variates; without elements unless the strategy uses them.
    control: ExactSum,
}

/// Updates by worker.
type Individual = BTreeMap<WorkerId, Vec<f32>>;

#[derive(Debug)]
enum Updates {
    /// The weighted sum is all that the strategy needs.
    Sum(ExactSum),
    /// The strategy needs each update by itself.
    Individual(Mutex<Individual>),
}

/// What was collected.
pub enum Collected<'a> {
    /// The sum of the weighted updates.
    Sum(&'a ExactSum),
    /// The same, to be read for the last time.
    LastOfSum(&'a mut ExactSum),
    /// The updates in the order of the workers' names.
    Individual(MutexGuard<'a, Individual>),
}

impl Collector {
    /// Nothing collected yet, for a model of `parameters` parameters.
    pub fn new(strategy: Strategy, parameters: usize) -> Self {
        let updates = match strategy.needs_individual_updates() {
            true => Updates::Individual(Mutex::default()),
            false => Updates::Sum(ExactSum::new(parameters)),
        };
        let control = ExactSum::new(if strategy.uses_control() { parameters } else { 0 });
        Self { parameters, updates, control }
    }

    /// Adds an update, and the change of its worker's control variate where the strategy uses it.
    ///
    /// # Errors
    /// If a sum could overflow; nothing has changed then.
    pub fn add(
        &self,
        worker: &WorkerId,
        update: &Vector<'_>,
        control: Option<&Vector<'_>>,
    ) -> Result<(), SumOverflow> {
        match &self.updates {
            Updates::Sum(sum) => sum.add(update.weight, update.max_abs, |f| (update.pieces)(f))?,
            Updates::Individual(updates) => {
                // These strategies do not weigh: the weight is what the norm is clipped by.
                let mut values = vec![0.0; self.parameters];
                (update.pieces)(&mut |offset, piece| {
                    piece.decode_into(&mut values[offset..offset + piece.len()])
                });
                values.iter_mut().for_each(|value| *value = (f64::from(*value) * update.weight) as f32);
                lock(updates).insert(worker.clone(), values);
            }
        }
        if let Some(control) = control
            && let Err(overflow) = self.control.add(control.weight, control.max_abs, |f| (control.pieces)(f))
        {
            self.remove(worker, update, None);
            return Err(overflow);
        }
        Ok(())
    }

    /// Takes an update out again: it is then as if it had never been there.
    pub fn remove(&self, worker: &WorkerId, update: &Vector<'_>, control: Option<&Vector<'_>>) {
        match &self.updates {
            Updates::Sum(sum) => sum.subtract(update.weight, update.max_abs, |f| (update.pieces)(f)),
            Updates::Individual(updates) => {
                lock(updates).remove(worker);
            }
        }
        if let Some(control) = control {
            self.control.subtract(control.weight, control.max_abs, |f| (control.pieces)(f));
        }
    }

    /// Back to nothing collected.
    pub fn reset(&mut self) {
        match &mut self.updates {
            Updates::Sum(sum) => sum.reset(),
            Updates::Individual(updates) => lock(updates).clear(),
        }
        self.control.reset();
    }

    /// What was collected.
    pub fn collected(&self) -> Collected<'_> {
        match &self.updates {
            Updates::Sum(sum) => Collected::Sum(sum),
            Updates::Individual(updates) => Collected::Individual(lock(updates)),
        }
    }

    /// What was collected, to be read for the last time before [`Self::reset`]: a large sum gives its memory back as
    /// it is read.
    pub fn last_of_collected(&mut self) -> Collected<'_> {
        match &mut self.updates {
            Updates::Sum(sum) => Collected::LastOfSum(sum),
            Updates::Individual(updates) => Collected::Individual(lock(updates)),
        }
    }

    /// The sum of the changes of the control variates.
    pub fn control(&self) -> &ExactSum {
        &self.control
    }
}

fn lock(updates: &Mutex<Individual>) -> MutexGuard<'_, Individual> {
    updates.lock().unwrap_or_else(PoisonError::into_inner)
}
