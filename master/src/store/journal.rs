//! The thread that appends to the log: one sync for all records that came while the last one ran.

use super::{Log, Record, StoreError};
use bytes::Bytes;
use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tokio::sync::oneshot;
use tracing::{error, info, warn};

/// Bytes after which a group stops collecting.
const MAX_GROUP_BYTES: usize = 32 << 20;

enum Command {
    Open { round: u64, settings: Bytes },
    Append(Append),
    RemoveBefore(u64),
}

struct Append {
    round: u64,
    record: Record,
    done: oneshot::Sender<Result<(), String>>,
}

/// Hands records to the thread that appends them.
#[derive(Debug, Clone)]
pub struct Journal {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// `None` once it is stopped. Unbounded, but every sender holds a place of the bounded decoding queue or of
    /// the round.
    commands: Mutex<Option<mpsc::Sender<Command>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    failing: Arc<AtomicBool>,
}

impl Journal {
    /// Starts the thread. `committed` is told how long each group of records took.
    pub(super) fn start(
        log: Box<dyn Log>,
        committed: impl Fn(Duration, usize) + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel();
        let failing = Arc::new(AtomicBool::new(false));
        let appender =
            Appender { log: RoundLog::new(log), committed, carried: None, failing: failing.clone() };
        let thread =
            thread::Builder::new().name("journal".to_owned()).spawn(move || appender.run(&receiver))?;
        let shared = Shared { commands: Mutex::new(Some(sender)), thread: Mutex::new(Some(thread)), failing };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Gives the settings that a round's log begins with. They are written with the round's first record: a
    /// round without updates needs no log. A log that is there already keeps what it begins with.
    pub fn open(&self, round: u64, settings: Bytes) {
        self.send(Command::Open { round, settings });
    }

    /// Queues a record for a round's log; the receiver resolves once it is durable. Records of one round must
    /// not follow those of a later one.
    pub fn append(&self, round: u64, record: Record) -> oneshot::Receiver<Result<(), String>> {
        let (done, receiver) = oneshot::channel();
        self.send(Command::Append(Append { round, record, done }));
        receiver
    }

    /// Whether the last records could not be written. Further ones may be: this is for people.
    pub fn is_failing(&self) -> bool {
        self.shared.failing.load(Ordering::Relaxed)
    }

    /// Removes the logs of earlier rounds, which no start needs any more.
    pub(super) fn remove_before(&self, round: u64) {
        self.send(Command::RemoveBefore(round));
    }

    /// After a stop, what is sent is dropped, and its receiver says so.
    fn send(&self, command: Command) {
        if let Some(sender) = &*self.shared.commands.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = sender.send(command);
        }
    }

    /// Waits until everything queued has been answered. Blocks: call it off the async threads.
    pub fn stop(&self) {
        self.shared.commands.lock().unwrap_or_else(PoisonError::into_inner).take();
        let thread = self.shared.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

/// Appends groups of records to the logs of rounds.
#[derive(Debug)]
pub(crate) struct RoundLog {
    log: Box<dyn Log>,
    /// Settings of the round that was opened last, until it has a record.
    opened: Option<(u64, Bytes)>,
    /// The round whose log is written.
    round: Option<u64>,
    /// What its log begins with, until that is durable.
    first: Option<Record>,
}

impl RoundLog {
    pub(crate) fn new(log: Box<dyn Log>) -> Self {
        Self { log, opened: None, round: None, first: None }
    }

    pub(crate) fn open(&mut self, round: u64, settings: Bytes) {
        self.opened = Some((round, settings));
    }

    /// Makes records durable, all of them or none that counts.
    pub(crate) fn commit<'a>(
        &mut self,
        round: u64,
        records: impl IntoIterator<Item = &'a Record>,
    ) -> Result<(), StoreError> {
        if self.round != Some(round) {
            let begun = self.log.replay(round, &mut |_| Ok(()))?.is_some_and(|found| !found.is_empty());
            let opened = self.opened.take_if(|(opened, _)| *opened == round);
            self.first = opened.filter(|_| !begun).map(|(_, settings)| Record::Opened(settings));
            self.round = Some(round);
        }
        if let Some(first) = &self.first {
            self.log.append(round, first)?;
        }
        for record in records {
            self.log.append(round, record)?;
        }
        self.log.sync()?;
        self.first = None;
        Ok(())
    }

    pub(crate) fn remove_before(&mut self, round: u64) -> Result<(), StoreError> {
        let rounds = self.log.rounds()?;
        rounds.into_iter().filter(|old| *old < round).try_for_each(|old| self.log.remove(old))
    }
}

struct Appender<F> {
    log: RoundLog,
    committed: F,
    /// What was taken from the queue behind the last group.
    carried: Option<Command>,
    failing: Arc<AtomicBool>,
}

impl<F: Fn(Duration, usize)> Appender<F> {
    fn run(mut self, commands: &mpsc::Receiver<Command>) {
        while let Some(command) = self.carried.take().or_else(|| commands.recv().ok()) {
            match command {
                Command::Open { round, settings } => self.log.open(round, settings),
                Command::RemoveBefore(round) => {
                    if let Err(error) = self.log.remove_before(round) {
                        warn!("{error}");
                    }
                }
                Command::Append(first) => self.commit(first, commands),
            }
        }
    }

    /// Appends a record and those of the same round that wait behind it, makes them durable together, and
    /// answers.
    fn commit(&mut self, first: Append, commands: &mpsc::Receiver<Command>) {
        let (round, mut bytes) = (first.round, first.record.body_len());
        let mut group = vec![first];
        while bytes < MAX_GROUP_BYTES {
            match commands.try_recv() {
                Ok(Command::Append(next)) if next.round == round => {
                    bytes += next.record.body_len();
                    group.push(next);
                }
                Ok(other) => {
                    self.carried = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        let started = Instant::now();
        let result = self.log.commit(round, group.iter().map(|append| &append.record));
        (self.committed)(started.elapsed(), group.len());
        self.report(&result);
        let result = result.map_err(|error| error.to_string());
        for append in group {
            let _ = append.done.send(result.clone());
        }
    }

    fn report(&mut self, result: &Result<(), StoreError>) {
        let was_failing = self.failing.swap(result.is_err(), Ordering::Relaxed);
        match result {
            Err(error) if !was_failing => {
                error!("{error}; updates are refused until the journal can be written again");
            }
            Ok(()) if was_failing => info!("the journal can be written again"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Replayed, Visit, memory::Memory, record::sample_update};
    use std::{
        path::PathBuf,
        sync::{
            Condvar,
            atomic::{AtomicUsize, Ordering},
        },
    };

    /// A log whose first sync lasts until `go`, and which counts them.
    #[derive(Debug)]
    struct Slow<L> {
        log: L,
        syncs: Arc<AtomicUsize>,
        go: Arc<(Mutex<bool>, Condvar)>,
    }

    impl<L: Log> Log for Slow<L> {
        fn rounds(&self) -> Result<Vec<u64>, StoreError> {
            self.log.rounds()
        }

        fn replay(&mut self, round: u64, visit: &mut Visit<'_>) -> Result<Option<Replayed>, StoreError> {
            self.log.replay(round, visit)
        }

        fn append(&mut self, round: u64, record: &Record) -> Result<(), StoreError> {
            self.log.append(round, record)
        }

        fn sync(&mut self) -> Result<(), StoreError> {
            self.syncs.fetch_add(1, Ordering::Relaxed);
            let went = self.go.1.wait_while(self.go.0.lock().unwrap(), |go| !*go).unwrap();
            drop(went);
            self.log.sync()
        }

        fn remove(&mut self, round: u64) -> Result<(), StoreError> {
            self.log.remove(round)
        }

        fn archive(&mut self, rounds: &[u64], archive: &str) -> Result<(), StoreError> {
            self.log.archive(rounds, archive)
        }

        fn name(&self, round: u64) -> PathBuf {
            self.log.name(round)
        }
    }

    fn records(memory: &Memory, round: u64) -> Vec<Record> {
        let mut records = Vec::new();
        let visit = &mut |record| {
            records.push(record);
            Ok(())
        };
        memory.parts([1; 32]).0.replay(round, visit).unwrap();
        records
    }

    #[test]
    fn appends_that_wait_for_a_sync_share_the_next_one() {
        let memory = Memory::new(1);
        let (syncs, go) = (Arc::<AtomicUsize>::default(), Arc::<(Mutex<bool>, Condvar)>::default());
        let log = Slow { log: memory.parts([1; 32]).0, syncs: syncs.clone(), go: go.clone() };
        let journal = Journal::start(Box::new(log), |_, _| {}).unwrap();
        let first = journal.append(3, sample_update(0));
        while syncs.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        // The first sync runs until all of these wait.
        let waiting: Vec<_> = (1..=100).map(|k| journal.append(3, sample_update(k))).collect();
        let of_next_round = journal.append(4, sample_update(0));
        *go.0.lock().unwrap() = true;
        go.1.notify_all();
        for done in [first].into_iter().chain(waiting).chain([of_next_round]) {
            done.blocking_recv().unwrap().unwrap();
        }
        journal.stop();
        assert_eq!(syncs.load(Ordering::Relaxed), 3);
        assert_eq!(records(&memory, 3), (0..=100).map(sample_update).collect::<Vec<_>>());
        assert!(journal.append(4, sample_update(1)).blocking_recv().is_err(), "it was stopped");
    }

    #[test]
    fn a_log_begins_with_the_settings_once_and_with_those_of_its_round() {
        let memory = Memory::new(1);
        let journal = || Journal::start(Box::new(memory.parts([1; 32]).0), |_, _| {}).unwrap();
        let settings = |text: &'static str| Bytes::from_static(text.as_bytes());
        let first = journal();
        first.open(3, settings("three"));
        memory.set_full(true);
        assert!(first.append(3, sample_update(0)).blocking_recv().unwrap().is_err());
        memory.set_full(false);
        first.append(3, sample_update(1)).blocking_recv().unwrap().unwrap();
        first.stop();
        let second = journal();
        second.open(3, settings("others"));
        second.append(3, sample_update(2)).blocking_recv().unwrap().unwrap();
        second.open(4, settings("four"));
        second.append(4, sample_update(3)).blocking_recv().unwrap().unwrap();
        second.append(5, sample_update(4)).blocking_recv().unwrap().unwrap();
        second.stop();
        let opened = |text| Record::Opened(settings(text));
        assert_eq!(records(&memory, 3), [opened("three"), sample_update(1), sample_update(2)]);
        assert_eq!(records(&memory, 4), [opened("four"), sample_update(3)]);
        assert_eq!(records(&memory, 5), [sample_update(4)]);
    }
}
