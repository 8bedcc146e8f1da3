//! Representations of models that were asked for: made once for all who ask, kept within a budget.

use super::form::Form;
use axum::body::Bytes;
use fl_protocol::limits::MAX_CONTAINER_HEADER_BYTES;
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

/// Representations that may be waited for at a time; others are refused.
const MAX_MAKING: usize = 16;
/// Representations that are kept, however small.
const MAX_KEPT: usize = 64;
/// The budget, unless a model is larger.
const MIN_BUDGET: usize = 8 << 20;
/// How long a reader waits for a representation.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes for representations of a model of that many parameters: one exact file always fits.
pub(super) fn budget(parameters: usize) -> usize {
    let file = parameters.saturating_mul(size_of::<f32>()).saturating_add(MAX_CONTAINER_HEADER_BYTES + 8);
    file.max(MIN_BUDGET)
}

/// One round's model in one form.
#[derive(Debug)]
pub(super) struct Representation {
    /// The round.
    pub round: u64,
    /// Names the content: quoted, as HTTP wants it.
    pub etag: String,
    /// The body.
    pub bytes: Bytes,
}

/// Why there is no representation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failed {
    /// Too many are being made.
    Busy,
    /// The round's model is not kept.
    NotKept,
    /// The model cannot be read or written; the log says why.
    Internal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    round: u64,
    form: Form,
}

type Made = Result<Arc<Representation>, Failed>;

/// A representation, or the work that makes it.
struct Entry {
    key: Key,
    /// Its size once it is made.
    size: Option<usize>,
    made: Shared<BoxFuture<'static, Made>>,
}

/// The cache. Work runs on blocking threads of the runtime, never on those that decode updates.
pub(super) struct Representations {
    budget: usize,
    /// Permits for concurrent work: readers must not take the cores from updates.
    makers: Semaphore,
    /// The least recently used first.
    entries: Mutex<Vec<Entry>>,
}

impl Representations {
    /// A cache of at most `budget` bytes, beside what readers hold.
    pub(super) fn new(budget: usize) -> Self {
        Self { budget, makers: Semaphore::new(1), entries: Mutex::default() }
    }

    /// The representation of `round` in `form`, made by `make` unless it is there or under way.
    ///
    /// # Errors
    /// What `make` says, or that too many are being made.
    pub(super) async fn get(
        self: &Arc<Self>,
        round: u64,
        form: Form,
        make: impl FnOnce() -> Result<Representation, Failed> + Send + 'static,
    ) -> Made {
        let key = Key { round, form };
        let made = {
            let mut entries = self.lock();
            if let Some(at) = entries.iter().position(|entry| entry.key == key) {
                let entry = entries.remove(at);
                let made = entry.made.clone();
                entries.push(entry);
                made
            } else {
                if entries.iter().filter(|entry| entry.size.is_none()).count() >= MAX_MAKING {
                    return Err(Failed::Busy);
                }
                // A task of its own: readers who leave do not stop what others wait for.
                let work = tokio::spawn(self.clone().make(key, make));
                let made = async move { work.await.unwrap_or(Err(Failed::Internal)) }.boxed().shared();
                entries.push(Entry { key, size: None, made: made.clone() });
                made
            }
        };
        timeout(PATIENCE, made).await.unwrap_or(Err(Failed::Busy))
    }

    async fn make(
        self: Arc<Self>,
        key: Key,
        make: impl FnOnce() -> Result<Representation, Failed> + Send + 'static,
    ) -> Made {
        let permit = self.makers.acquire().await;
        let made = spawn_blocking(make).await.unwrap_or(Err(Failed::Internal)).map(Arc::new);
        drop(permit);
        self.settle(key, made.as_ref().ok().map(|representation| representation.bytes.len()));
        made
    }

    /// Notes the size of what was made, and forgets what failed or is beyond the budget.
    fn settle(&self, key: Key, size: Option<usize>) {
        let mut entries = self.lock();
        match size.filter(|size| *size <= self.budget) {
            Some(size) => {
                entries.iter_mut().filter(|entry| entry.key == key).for_each(|entry| entry.size = Some(size));
            }
            None => entries.retain(|entry| entry.key != key),
        }
        let mut kept: usize = entries.iter().filter_map(|entry| entry.size).sum();
        while kept > self.budget || entries.len() > MAX_KEPT + MAX_MAKING {
            let Some(at) = entries.iter().position(|entry| entry.size.is_some()) else { break };
            kept -= entries.remove(at).size.unwrap_or(0);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    };

    fn representation(round: u64, len: usize) -> Representation {
        Representation { round, etag: format!("\"{round}\""), bytes: vec![0; len].into() }
    }

    fn kept(cache: &Representations) -> usize {
        cache.lock().iter().filter_map(|entry| entry.size).sum()
    }

    #[tokio::test]
    async fn readers_at_the_same_time_share_one_piece_of_work() {
        let cache = Arc::new(Representations::new(1000));
        let (go, gate) = mpsc::channel::<()>();
        let runs = Arc::new(AtomicUsize::new(0));
        let gate = Arc::new(Mutex::new(gate));
        let readers: Vec<_> = (0..20)
            .map(|_| {
                let (cache, runs, gate) = (cache.clone(), runs.clone(), gate.clone());
                tokio::spawn(async move {
                    let make = move || {
                        gate.lock().unwrap().recv().unwrap();
                        runs.fetch_add(1, Ordering::Relaxed);
                        Ok(representation(1, 10))
                    };
                    cache.get(1, Form::Json, make).await
                })
            })
            .collect();
        // The first reader leaves while its work is under way.
        while cache.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        readers[0].abort();
        go.send(()).unwrap();
        let mut answered = 0;
        for reader in readers {
            if let Ok(made) = reader.await {
                assert_eq!(made.unwrap().bytes.len(), 10);
                answered += 1;
            }
        }
        assert!(answered >= 19);
        assert_eq!(runs.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn the_budget_holds_and_the_least_recently_used_goes() {
        let cache = Arc::new(Representations::new(100));
        for round in 0..50 {
            cache.get(round, Form::Exact, move || Ok(representation(round, 30))).await.unwrap();
            // Round 0 is used all the time.
            cache.get(0, Form::Exact, || Ok(representation(0, 30))).await.unwrap();
            assert!(kept(&cache) <= 100);
        }
        cache.get(0, Form::Exact, || panic!("it is still kept")).await.unwrap();
        assert_eq!(cache.get(1, Form::Exact, || Err(Failed::NotKept)).await.unwrap_err(), Failed::NotKept);
        // One that is larger than the budget is served and not kept.
        assert_eq!(
            cache.get(60, Form::Exact, || Ok(representation(60, 101))).await.unwrap().bytes.len(),
            101
        );
        assert!(cache.lock().iter().all(|entry| entry.key.round != 60));
    }

    #[tokio::test]
    async fn failures_are_not_kept_and_a_panic_is_one() {
        let cache = Arc::new(Representations::new(100));
        let panicked = cache.get(1, Form::Json, || panic!("on purpose")).await;
        assert_eq!(panicked.unwrap_err(), Failed::Internal);
        assert!(cache.lock().is_empty());
        assert!(cache.get(1, Form::Json, || Ok(representation(1, 1))).await.is_ok());
    }

    #[tokio::test]
    async fn beyond_the_bound_readers_are_refused_and_those_before_are_served() {
        let cache = Arc::new(Representations::new(1000));
        let (go, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let readers: Vec<_> = (0..MAX_MAKING as u64)
            .map(|round| {
                let (cache, gate) = (cache.clone(), gate.clone());
                tokio::spawn(async move {
                    let make = move || {
                        gate.lock().unwrap().recv().unwrap();
                        Ok(representation(round, 1))
                    };
                    cache.get(round, Form::Json, make).await.is_ok()
                })
            })
            .collect();
        while cache.lock().len() < MAX_MAKING {
            tokio::task::yield_now().await;
        }
        for round in 100..200 {
            let refused = cache.get(round, Form::Json, move || Ok(representation(round, 1))).await;
            assert_eq!(refused.unwrap_err(), Failed::Busy);
        }
        (0..MAX_MAKING).for_each(|_| go.send(()).unwrap());
        for reader in readers {
            assert!(reader.await.unwrap());
        }
    }
}
