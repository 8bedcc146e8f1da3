//! The thread that appends to the log: one sync for all records that came while the last one ran.

use super::{Log, Record, StoreError};
use bytes::Bytes;
use std::{
    io,
    sync::{Arc, Mutex, PoisonError, mpsc},
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
}

impl Journal {
    /// Starts the thread. `committed` is told how long each group of records took.
    pub(super) fn start(
        log: Box<dyn Log>,
        committed: impl Fn(Duration, usize) + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel();
        let appender = Appender {
            log,
            committed,
            opened: None,
            round: None,
            first: None,
            carried: None,
            failing: false,
        };
        let thread =
            thread::Builder::new().name("journal".to_owned()).spawn(move || appender.run(&receiver))?;
        let shared = Shared { commands: Mutex::new(Some(sender)), thread: Mutex::new(Some(thread)) };
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

struct Appender<F> {
    log: Box<dyn Log>,
    committed: F,
    /// Settings of the round that was opened last, until it has a record.
    opened: Option<(u64, Bytes)>,
    /// The round whose log is written.
    round: Option<u64>,
    /// What its log begins with, until that is durable.
    first: Option<Record>,
    /// What was taken from the queue behind the last group.
    carried: Option<Command>,
    failing: bool,
}

impl<F: Fn(Duration, usize)> Appender<F> {
    fn run(mut self, commands: &mpsc::Receiver<Command>) {
        while let Some(command) = self.carried.take().or_else(|| commands.recv().ok()) {
            match command {
                Command::Open { round, settings } => self.opened = Some((round, settings)),
                Command::RemoveBefore(round) => self.remove_before(round),
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
            match self.carried.take().or_else(|| commands.try_recv().ok()) {
                Some(Command::Append(next)) if next.round == round => {
                    bytes += next.record.body_len();
                    group.push(next);
                }
                Some(other) => {
                    self.carried = Some(other);
                    break;
                }
                None => break,
            }
        }
        let started = Instant::now();
        let result = self.write(round, &group);
        (self.committed)(started.elapsed(), group.len());
        self.report(&result);
        let result = result.map_err(|error| error.to_string());
        for append in group {
            let _ = append.done.send(result.clone());
        }
    }

    fn write(&mut self, round: u64, group: &[Append]) -> Result<(), StoreError> {
        if self.round != Some(round) {
            let begun = self.log.replay(round, &mut |_| Ok(()))?.is_some_and(|found| !found.is_empty());
            let opened = self.opened.take_if(|(opened, _)| *opened == round);
            self.first = opened.filter(|_| !begun).map(|(_, settings)| Record::Opened(settings));
            self.round = Some(round);
        }
        for record in self.first.iter().chain(group.iter().map(|append| &append.record)) {
            self.log.append(round, record)?;
        }
        self.log.sync()?;
        self.first = None;
        Ok(())
    }

    fn report(&mut self, result: &Result<(), StoreError>) {
        match result {
            Err(error) if !self.failing => {
                self.failing = true;
                error!("{error}; updates are refused until the journal can be written again");
            }
            Ok(()) if self.failing => {
                self.failing = false;
                info!("the journal can be written again");
            }
            _ => {}
        }
    }

    fn remove_before(&mut self, round: u64) {
        let removed = self.log.rounds().and_then(|rounds| {
            rounds.into_iter().filter(|old| *old < round).try_for_each(|old| self.log.remove(old))
        });
        if let Err(error) = removed {
            warn!("{error}");
        }
    }
}
