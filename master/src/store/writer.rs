//! The thread that writes checkpoints and history, so that no round waits for the disk.

use super::{Checkpoint, StoreError, files, history};
use fl_protocol::HistoryRecord;
use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::sync::mpsc;
use tracing::{error, info};

/// Between two tries to write a checkpoint while the disk is full.
const RETRY: Duration = Duration::from_secs(1);

enum Command {
    Checkpoint(Checkpoint, HistoryRecord),
    Evaluated(HistoryRecord),
}

/// Hands work to the writing thread.
#[derive(Debug)]
pub struct StoreWriter {
    /// `None` once it is stopped.
    commands: Mutex<Option<mpsc::Sender<Command>>>,
    failing: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl StoreWriter {
    pub(super) fn start(dir: PathBuf, fingerprint: [u8; 32], keep_rounds: usize) -> io::Result<Self> {
        // One checkpoint is being written, one waits: a disk slower than the rounds slows them down.
        let (sender, receiver) = mpsc::channel(1);
        let failing = Arc::new(AtomicBool::new(false));
        let worker = Worker { dir, fingerprint, keep_rounds, failing: failing.clone() };
        let thread = thread::Builder::new().name("store".to_owned()).spawn(move || worker.run(receiver))?;
        Ok(Self { commands: Mutex::new(Some(sender)), failing, thread: Mutex::new(Some(thread)) })
    }

    /// Whether the last write failed. New updates are refused then: they could not be finished.
    pub fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Acquire)
    }

    /// Queues a finished round; waits while the disk is behind by two.
    pub async fn checkpoint(&self, checkpoint: Checkpoint, record: HistoryRecord) {
        if let Some(sender) = self.sender() {
            // The thread ends only after the sender is gone.
            let _ = sender.send(Command::Checkpoint(checkpoint, record)).await;
        }
    }

    /// Queues the record of a round that has been evaluated. Blocks: for use off the async threads.
    pub fn evaluated(&self, record: HistoryRecord) {
        if let Some(sender) = self.sender() {
            let _ = sender.blocking_send(Command::Evaluated(record));
        }
    }

    fn sender(&self) -> Option<mpsc::Sender<Command>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until everything queued is on disk. Blocks: call it off the async threads.
    pub fn stop(&self) {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

struct Worker {
    dir: PathBuf,
    fingerprint: [u8; 32],
    keep_rounds: usize,
    failing: Arc<AtomicBool>,
}

impl Worker {
    fn run(self, mut commands: mpsc::Receiver<Command>) {
        while let Some(command) = commands.blocking_recv() {
            let record = match command {
                Command::Checkpoint(checkpoint, record) => {
                    self.persist(&checkpoint, &commands);
                    record
                }
                Command::Evaluated(record) => record,
            };
            if let Err(error) = history::append(&self.dir, &record) {
                error!("{error}");
            }
        }
    }

    /// Tries until it works, or until a shutdown: the journal still holds the round then.
    fn persist(&self, checkpoint: &Checkpoint, commands: &mpsc::Receiver<Command>) {
        let path = files::path(&self.dir, "checkpoint", checkpoint.round);
        while let Err(error) = checkpoint.write(&path, &self.fingerprint) {
            if !self.failing.swap(true, Ordering::AcqRel) {
                error!("{error}; updates are refused until it works again");
            }
            if commands.is_closed() || commands.sender_strong_count() == 0 {
                return;
            }
            thread::sleep(RETRY);
        }
        if self.failing.swap(false, Ordering::AcqRel) {
            info!(path = %path.display(), "the state can be written again");
        }
        if let Err(error) = self.prune(checkpoint.round) {
            error!("{error}");
        }
    }

    /// Removes what no start needs. The newest but one checkpoint and its journal stay, so that a
    /// damaged newest one loses nothing.
    fn prune(&self, newest: u64) -> Result<(), StoreError> {
        let keep_from = (newest + 1).saturating_sub(self.keep_rounds.max(2) as u64);
        for round in files::list(&self.dir, "checkpoint")?.into_iter().filter(|r| *r < keep_from) {
            files::remove(&files::path(&self.dir, "checkpoint", round));
        }
        for round in files::list(&self.dir, "journal")?.into_iter().filter(|r| r + 1 < newest) {
            files::remove(&files::path(&self.dir, "journal", round));
        }
        Ok(())
    }
}
