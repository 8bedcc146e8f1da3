//! From the newest readable checkpoint over the closed journals to the open round, and back to an earlier one.

use super::{Checkpoint, Found, Replayed, Store, StoreError, checkpoint::Keep, newest_records};
use bytes::Bytes;
use fl_protocol::WorkerId;
use std::collections::{BTreeMap, BTreeSet};
use tracing::{error, info};

/// What the checkpoints say.
struct Checkpoints {
    newest: Option<Checkpoint>,
    /// Rounds of those that can be read.
    readable: Vec<u64>,
    participants: Vec<(u64, Vec<WorkerId>)>,
    /// Those that cannot, the newest first.
    damaged: Vec<(u64, StoreError)>,
}

pub(super) fn load(store: &mut Store) -> Result<Found, StoreError> {
    let Checkpoints { newest, participants, damaged, .. } = checkpoints(store)?;
    let latest = store.latest_round()?;
    let (Some(checkpoint), Some(latest)) = (&newest, latest) else {
        return match (damaged.into_iter().next(), latest) {
            (Some((_, damaged)), _) => Err(damaged),
            (None, Some(round)) => {
                Err(StoreError::damaged(&store.log.name(round), "there is a journal but no checkpoint"))
            }
            (None, None) => Ok(Found::default()),
        };
    };
    let Followed { open_round, settings, broken } = follow(store, checkpoint.round, latest)?;
    if let Some(reason) = broken {
        let beyond =
            damaged.iter().filter(|(round, _)| *round > open_round).map(|(_, error)| error.in_brief());
        let problems: Vec<String> = beyond.chain([reason]).collect();
        return Err(StoreError::Incomplete { latest, possible: open_round, problems: problems.join(", ") });
    }
    for (_, damaged) in &damaged {
        error!("{}; it is not needed: the state is complete without it", damaged.in_brief());
    }
    let history = newest_records(store.snapshots.history()?, checkpoint.round);
    Ok(Found { checkpoint: newest, open_round, settings, participants, history })
}

fn checkpoints(store: &Store) -> Result<Checkpoints, StoreError> {
    let mut found =
        Checkpoints { newest: None, readable: Vec::new(), participants: Vec::new(), damaged: Vec::new() };
    for round in store.snapshots.rounds()?.into_iter().rev() {
        let keep = if found.newest.is_none() { Keep::Everything } else { Keep::Header };
        match store.checkpoint(round, keep) {
            Ok(None) => {
                let gone = StoreError::damaged(&store.snapshots.name(round), "it is gone");
                found.damaged.push((round, gone));
            }
            Ok(Some(checkpoint)) => {
                if round > 0 {
                    found.participants.push((round - 1, checkpoint.participants.clone()));
                }
                found.readable.push(round);
                found.newest.get_or_insert(checkpoint);
            }
            Err(other @ StoreError::OtherModel(_)) => return Err(other),
            Err(damaged) => found.damaged.push((round, damaged)),
        }
    }
    found.participants.reverse();
    found.readable.reverse();
    Ok(found)
}

/// The rounds that the journals hold.
struct Followed {
    open_round: u64,
    /// The settings at the head of each journal that has them.
    settings: BTreeMap<u64, Bytes>,
    /// Why a later round, which a file names, cannot be reached.
    broken: Option<String>,
}

/// Follows closed journals from round `from` to the first that is open, and says why a later round, which a
/// file names, cannot be reached.
fn follow(store: &mut Store, from: u64, latest: u64) -> Result<Followed, StoreError> {
    let mut round = from;
    let mut settings = BTreeMap::new();
    loop {
        let name = store.log.name(round).display().to_string();
        let replayed = store.log.replay(round, &mut |_| Ok(()));
        let mut replayed = replayed.map(|found| found.map(|found| completed(found, round, Some(latest))));
        if let Ok(Some(found)) = &mut replayed {
            settings.extend(found.settings.take().map(|begun_with| (round, begun_with)));
        }
        let broken = match replayed {
            Ok(Some(Replayed { closed: Some(_), .. })) => {
                round += 1;
                continue;
            }
            Ok(_) if round >= latest => None,
            Ok(Some(_)) => Some(format!("{name} does not say that its round was closed")),
            Ok(None) => Some(format!("{name} is missing")),
            Err(damaged @ (StoreError::Damaged { .. } | StoreError::Io { .. })) => Some(damaged.in_brief()),
            Err(other) => return Err(other),
        };
        return Ok(Followed { open_round: round, settings, broken });
    }
}

/// Adds what a log of version 1 leaves to be inferred: if `latest`, the newest round that a file names, is a
/// later one, the round was closed.
pub(super) fn completed(mut replayed: Replayed, round: u64, latest: Option<u64>) -> Replayed {
    if replayed.version == 1 && latest > Some(round) && replayed.closed.is_none() {
        replayed.closed = Some(replayed.inferred_close());
    }
    replayed
}

pub(super) fn rollback_to(store: &mut Store, round: u64) -> Result<String, StoreError> {
    let readable = checkpoints(store)?.readable;
    let latest = store.latest_round()?.unwrap_or(0);
    let mut possible = BTreeSet::new();
    for from in readable {
        possible.extend(from..=follow(store, from, latest)?.open_round);
    }
    if !possible.contains(&round) {
        return Err(StoreError::NoSuchRound { round, possible: possible.into_iter().collect() });
    }
    let mut checkpoints = store.snapshots.rounds()?;
    checkpoints.retain(|later| *later > round);
    let journals = store.log.rounds()?;
    let (first, later): (Vec<u64>, Vec<u64>) =
        journals.into_iter().filter(|later| *later >= round).partition(|later| *later == round);
    let archive = store.snapshots.new_archive()?;
    // Each step is durable before the next. Without the round's own journal, and as long as a later one is
    // there, a crash leaves what a start refuses or what was there before: never a third state.
    store.log.archive(&first, &archive)?;
    store.snapshots.archive(&checkpoints, &archive)?;
    store.log.archive(&later, &archive)?;
    store.snapshots.rewrite_history(&newest_records(store.snapshots.history()?, round))?;
    info!(round, archive, checkpoints = checkpoints.len(), "went back to an earlier round");
    Ok(archive)
}
