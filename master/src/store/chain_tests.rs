//! From damaged and missing files to a start, a refusal or an earlier round.

use super::{
    Checkpoint, Closed, Keeper, Log, Record, Snapshots, Store, StoreError,
    memory::Memory,
    record::{sample_history, sample_update},
};
use bytes::Bytes;
use std::sync::Arc;

const FINGERPRINT: [u8; 32] = [1; 32];

fn store(memory: &Memory) -> Store {
    let (log, snapshots) = memory.parts(FINGERPRINT);
    Store::new(Box::new(log), Arc::new(snapshots), FINGERPRINT)
}

fn checkpoint(round: u64) -> Checkpoint {
    Checkpoint { round, ..Checkpoint::initial(Bytes::from_static(b"model")) }
}

fn close(log: &mut dyn Log, round: u64) {
    log.append(round, &Record::Closed(Closed { updates: 1, ..Closed::default() })).unwrap();
    log.sync().unwrap();
}

/// Rounds up to 6 are closed, with an update each; 6 is open and has one, too. Five checkpoints are kept.
fn used() -> Memory {
    let memory = Memory::new(1);
    let (mut log, snapshots) = memory.parts(FINGERPRINT);
    let snapshots: Arc<dyn Snapshots> = Arc::new(snapshots);
    let keeper = Keeper::new(snapshots.clone(), FINGERPRINT, 5);
    for round in 0..=6 {
        keeper.write(&checkpoint(round)).unwrap();
        let needed = keeper.prune(round).unwrap();
        (0..needed).for_each(|old| log.remove(old).unwrap());
        log.append(round, &sample_update(round)).unwrap();
        log.sync().unwrap();
        if round > 0 {
            snapshots.append_history(&sample_history(round)).unwrap();
        }
        if round < 6 {
            close(&mut log, round);
        }
    }
    assert_eq!((log.rounds().unwrap(), snapshots.rounds().unwrap()), (vec![5, 6], vec![2, 3, 4, 5, 6]));
    memory
}

fn refused(memory: &Memory) -> (String, u64, u64) {
    let error = store(memory).load().unwrap_err();
    let StoreError::Incomplete { latest, possible, .. } = error else { panic!("{error}") };
    (error.to_string(), latest, possible)
}

#[test]
fn one_damaged_checkpoint_is_made_up_for_by_the_journal() {
    let memory = used();
    memory.damage_snapshot(6);
    let found = store(&memory).load().unwrap();
    assert_eq!((found.checkpoint.unwrap().round, found.open_round), (5, 6));
    memory.damage_snapshot(3);
    assert_eq!(store(&memory).load().unwrap().open_round, 6);
}

#[test]
fn two_damaged_checkpoints_are_refused_with_both_ways_out() {
    let memory = used();
    memory.damage_snapshot(6);
    memory.damage_snapshot(5);
    let (text, latest, possible) = refused(&memory);
    assert_eq!((latest, possible), (6, 4));
    for part in [
        "goes up to round 6, but only round 4",
        "memory/checkpoint-6 is damaged",
        "memory/checkpoint-5 is damaged",
        "memory/journal-4 is missing",
        "Rounds 5 to 6 would be lost",
        "--rollback-to 4",
        "backup",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_missing_or_unclosed_journal_in_the_chain_is_refused() {
    let memory = used();
    memory.damage_snapshot(6);
    memory.parts(FINGERPRINT).0.remove(5).unwrap();
    let (text, latest, possible) = refused(&memory);
    assert_eq!((latest, possible), (6, 5));
    assert!(text.contains("memory/journal-5 is missing") && text.contains("Round 6 would be lost"), "{text}");
    // It closes its round, says the journal of the next round; but that is for version 1 to infer.
    let mut log = memory.parts(FINGERPRINT).0;
    log.append(5, &sample_update(5)).unwrap();
    log.sync().unwrap();
    let (text, ..) = refused(&memory);
    assert!(text.contains("memory/journal-5 does not say that its round was closed"), "{text}");
    close(&mut log, 5);
    assert_eq!(store(&memory).load().unwrap().open_round, 6);
}

#[test]
fn a_journal_beyond_the_newest_checkpoint_is_followed_or_missed() {
    let memory = used();
    let mut log = memory.parts(FINGERPRINT).0;
    close(&mut log, 6);
    assert_eq!(store(&memory).load().unwrap().open_round, 7);
    log.append(8, &sample_update(8)).unwrap();
    log.sync().unwrap();
    let (text, latest, possible) = refused(&memory);
    assert_eq!((latest, possible), (8, 7));
    assert!(text.contains("memory/journal-7 is missing"), "{text}");
}

#[test]
fn a_rollback_moves_everything_newer_away() {
    let memory = used();
    memory.damage_snapshot(6);
    memory.damage_snapshot(5);
    let error = store(&memory).rollback_to(5).unwrap_err().to_string();
    assert!(error.contains("round 5 cannot be restored: these can: 2, 3, 4"), "{error}");
    assert_eq!(memory.archived(), (vec![], vec![]), "a refusal changes nothing");
    assert_eq!(store(&memory).rollback_to(4).unwrap(), "archive-1");
    assert_eq!(memory.archived(), (vec![5, 6], vec![5, 6]));
    let found = store(&memory).load().unwrap();
    assert_eq!((found.checkpoint.unwrap().round, found.open_round), (4, 4));
    assert_eq!(found.history.iter().map(|record| record.round).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(store(&memory).rollback_to(2).unwrap(), "archive-2");
    assert_eq!(store(&memory).load().unwrap().open_round, 2);
}

#[test]
fn a_rollback_to_the_open_round_gives_up_its_updates_alone() {
    let memory = used();
    memory.damage_snapshot(6);
    store(&memory).rollback_to(6).unwrap();
    assert_eq!(memory.archived(), (vec![6], vec![]));
    let found = store(&memory).load().unwrap();
    assert_eq!((found.checkpoint.unwrap().round, found.open_round), (5, 6));
}

#[test]
fn without_a_checkpoint_nothing_starts_and_nothing_is_found_in_an_empty_store() {
    let memory = Memory::new(1);
    assert!(store(&memory).load().unwrap().checkpoint.is_none());
    let mut log = memory.parts(FINGERPRINT).0;
    log.append(0, &sample_update(0)).unwrap();
    log.sync().unwrap();
    let error = store(&memory).load().unwrap_err().to_string();
    assert!(error.contains("memory/journal-0 is damaged (there is a journal but no checkpoint)"), "{error}");
}
