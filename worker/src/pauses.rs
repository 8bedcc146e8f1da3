//! Waiting that a shutdown interrupts.

use std::time::Duration;
use tokio::sync::watch;

/// Whether a shutdown was requested.
#[derive(Debug, Clone)]
pub(crate) struct Stop(watch::Receiver<bool>);

impl Stop {
    /// The sender, and what it sets.
    pub(crate) fn channel() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self(receiver))
    }

    pub(crate) fn is_set(&self) -> bool {
        *self.0.borrow()
    }

    /// Resolves once it is set, or once its sender is dropped.
    pub(crate) async fn wait(&self) {
        let _ = self.0.clone().wait_for(|stop| *stop).await;
    }
}

/// How pauses pass.
#[derive(Debug, Clone, Default)]
pub(crate) enum Pauses {
    /// By sleeping.
    #[default]
    Sleep,
    /// Recorded instead, because tests do not sleep.
    #[cfg(test)]
    Record(std::sync::Arc<std::sync::Mutex<Vec<Duration>>>),
}

impl Pauses {
    /// Waits, but not beyond a shutdown.
    pub(crate) async fn wait(&self, pause: Duration, stop: &Stop) {
        match self {
            Self::Sleep => tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.wait() => {}
            },
            #[cfg(test)]
            Self::Record(pauses) => {
                pauses.lock().unwrap().push(pause);
                tokio::task::yield_now().await;
            }
        }
    }
}
