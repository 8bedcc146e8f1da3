//! The exit codes of this crate's errors.

use crate::store::StoreError;
use fl_app::Exit;
use std::error::Error;

/// The exit code of an error of this crate, `None` for any other.
pub fn exit_of(cause: &(dyn Error + 'static)) -> Option<Exit> {
    cause.downcast_ref::<StoreError>().map(|error| match error {
        StoreError::Io { .. } => Exit::Io,
        StoreError::Damaged { .. }
        | StoreError::Incomplete { .. }
        | StoreError::NoSuchRound { .. }
        | StoreError::OtherModel(_)
        | StoreError::OtherStrategy { .. }
        | StoreError::Locked(_) => Exit::NoInput,
    })
}
