//! The thread that writes checkpoints and history, so that no round waits for the disk.

use super::{Checkpoint, Journal, Snapshots, StoreError, write};
use fl_protocol::HistoryRecord;
use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

/// Bytes of checkpoints that may wait to be written while the next round is closed.
const MAX_QUEUED: usize = 8 << 20;
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
    state: Arc<State>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the thread and its owner tell each other.
#[derive(Debug, Default)]
struct State {
    failing: AtomicBool,
    /// Bytes of the checkpoints that are queued or being written.
    queued: watch::Sender<usize>,
    stopping: Mutex<bool>,
    stop: Condvar,
}

impl StoreWriter {
    /// Starts the thread, which begins with the rounds in `remade`.
    pub(super) fn start(
        keeper: Keeper,
        journal: Journal,
        remade: Vec<(Checkpoint, HistoryRecord)>,
    ) -> io::Result<Self> {
        // One checkpoint is being written, one waits: a disk slower than the rounds slows them down.
        let (sender, receiver) = mpsc::channel(1);
        let state = Arc::new(State::default());
        let worker = Worker { keeper, journal, state: state.clone(), behind: false };
        let thread =
            thread::Builder::new().name("store".to_owned()).spawn(move || worker.run(remade, receiver))?;
        Ok(Self { commands: Mutex::new(Some(sender)), state, thread: Mutex::new(Some(thread)) })
    }

    /// Whether the last write failed. New updates are refused then: they could not be finished.
    pub fn is_failing(&self) -> bool {
        self.state.failing.load(Ordering::Acquire)
    }

    /// Queues a finished round; waits while the disk is behind by two.
    pub async fn checkpoint(&self, checkpoint: Checkpoint, record: HistoryRecord) {
        if let Some(sender) = self.sender() {
            let size = size_of_content(&checkpoint);
            self.state.queued.send_modify(|queued| *queued += size);
            // Fails only after a stop.
            if sender.send(Command::Checkpoint(checkpoint, record)).await.is_err() {
                self.state.queued.send_modify(|queued| *queued -= size);
            }
        }
    }

    /// Waits until what is queued is small, or given up. A checkpoint keeps its model and the strategy's vectors in
    /// memory, and the next close would have to copy the vectors: large rounds wait for the disk instead.
    pub async fn caught_up(&self) {
        let mut queued = self.state.queued.subscribe();
        // Fails never: the sender is in our own state.
        let _ = queued.wait_for(|queued| *queued <= MAX_QUEUED).await;
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

    /// Waits until everything queued is on disk. What cannot be written now is left out: its round is in the
    /// log. Blocks: call it off the async threads.
    pub fn stop(&self) {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).take();
        *self.state.stopping.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.state.stop.notify_all();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

/// Bytes that a checkpoint keeps in memory.
fn size_of_content(checkpoint: &Checkpoint) -> usize {
    let vectors = checkpoint.server.to_vectors();
    let vectors: usize = vectors.iter().map(|(_, vector)| size_of_val(*vector)).sum();
    checkpoint.model.len() + vectors
}

impl State {
    /// Waits a while before the next try; false once that is not to come.
    fn wait(&self) -> bool {
        let stopping = self.stopping.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.stop.wait_timeout_while(stopping, RETRY, |stopping| !*stopping);
        !*waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Writes checkpoints and removes those that no start needs.
#[derive(Debug)]
pub(crate) struct Keeper {
    snapshots: Arc<dyn Snapshots>,
    fingerprint: [u8; 32],
    keep_rounds: usize,
}

impl Keeper {
    pub(crate) fn new(snapshots: Arc<dyn Snapshots>, fingerprint: [u8; 32], keep_rounds: usize) -> Self {
        Self { snapshots, fingerprint, keep_rounds }
    }

    /// Appends to the history, where a line that is lost loses no update. Returns whether that worked.
    pub(crate) fn record(&self, record: &HistoryRecord) -> bool {
        let appended = self.snapshots.append_history(record);
        if let Err(error) = &appended {
            warn!("{error}");
        }
        appended.is_ok()
    }

    pub(crate) fn write(&self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        write(&*self.snapshots, &self.fingerprint, checkpoint)
    }

    /// Removes what no start needs once the checkpoint of round `newest` is durable, and gives the first round
    /// whose log is needed. The newest but one checkpoint and its log stay, so that a damaged newest one loses
    /// nothing.
    pub(crate) fn prune(&self, newest: u64) -> Result<u64, StoreError> {
        let keep_from = (newest + 1).saturating_sub(self.keep_rounds.max(2) as u64);
        for round in self.snapshots.rounds()?.into_iter().filter(|round| *round < keep_from) {
            self.snapshots.remove(round)?;
        }
        Ok(newest.saturating_sub(1))
    }
}

struct Worker {
    keeper: Keeper,
    journal: Journal,
    state: Arc<State>,
    /// Whether a checkpoint was given up.
    behind: bool,
}

impl Worker {
    fn run(mut self, remade: Vec<(Checkpoint, HistoryRecord)>, mut commands: mpsc::Receiver<Command>) {
        for (checkpoint, record) in remade {
            self.checkpoint(&checkpoint, &record);
        }
        while let Some(command) = commands.blocking_recv() {
            match command {
                Command::Checkpoint(checkpoint, record) => {
                    let size = size_of_content(&checkpoint);
                    self.checkpoint(&checkpoint, &record);
                    drop(checkpoint);
                    self.state.queued.send_modify(|queued| *queued -= size);
                }
                Command::Evaluated(record) => {
                    self.keeper.record(&record);
                }
            }
        }
    }

    fn checkpoint(&mut self, checkpoint: &Checkpoint, record: &HistoryRecord) {
        // Before the checkpoint: a round without a checkpoint is made again, and its line with it.
        let recorded = self.keeper.record(record);
        // A later checkpoint would remove the logs of the rounds that were given up and be the only one.
        self.behind = self.behind || !self.persist(checkpoint);
        if !recorded && !self.behind {
            self.keeper.record(record);
        }
    }

    /// Tries until it works, or until a stop.
    fn persist(&self, checkpoint: &Checkpoint) -> bool {
        let round = checkpoint.round;
        while let Err(error) = self.keeper.write(checkpoint) {
            if !self.state.failing.swap(true, Ordering::AcqRel) {
                error!("{error}; updates are refused until it works again");
            }
            if !self.state.wait() {
                warn!(round, "stopped without this checkpoint: its round is in the journal");
                return false;
            }
        }
        if self.state.failing.swap(false, Ordering::AcqRel) {
            info!(round, "checkpoints can be written again");
        }
        match self.keeper.prune(round) {
            Ok(needed) => self.journal.remove_before(needed),
            Err(error) => warn!("{error}"),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Store, memory::Memory, record::sample_history};
    use bytes::Bytes;

    fn checkpoint(round: u64) -> Checkpoint {
        Checkpoint { round, ..Checkpoint::initial(Bytes::from_static(b"model")) }
    }

    /// A round's end waits for room in the queue while the disk is full: the stop must not wait for it.
    #[test]
    fn a_stop_on_a_full_disk_ends() {
        let memory = Memory::new(1);
        let (log, snapshots) = memory.parts([1; 32]);
        let store = Store::new(Box::new(log), Arc::new(snapshots), [1; 32]);
        let durable = Arc::new(store.start(5, Vec::new(), |_, _| {}).unwrap());
        memory.set_full(true);
        let queueing = durable.clone();
        let queued = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            for round in 1..5 {
                runtime.block_on(queueing.writer.checkpoint(checkpoint(round), sample_history(round)));
            }
        });
        while !durable.writer.is_failing() {
            thread::yield_now();
        }
        durable.stop();
        queued.join().unwrap();
        assert!(memory.parts([1; 32]).1.rounds().unwrap().is_empty());
    }

    #[test]
    fn what_is_queued_is_written_before_a_stop_ends_and_old_rounds_go() {
        let memory = Memory::new(1);
        let (log, snapshots) = memory.parts([1; 32]);
        let store = Store::new(Box::new(log), Arc::new(snapshots), [1; 32]);
        let remade = vec![(checkpoint(1), sample_history(1))];
        let durable = store.start(2, remade, |_, _| {}).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for round in 2..5 {
            runtime.block_on(durable.writer.checkpoint(checkpoint(round), sample_history(round)));
        }
        durable.writer.evaluated(sample_history(4));
        durable.stop();
        assert_eq!(&durable.model_of(4).unwrap().unwrap()[..], b"model");
        assert_eq!(durable.model_of(2).unwrap(), None);
        let snapshots = memory.parts([1; 32]).1;
        assert_eq!(snapshots.rounds().unwrap(), [3, 4]);
        let rounds: Vec<u64> = snapshots.history().unwrap().iter().map(|record| record.round).collect();
        assert_eq!(rounds, [1, 2, 3, 4, 4]);
    }
}
