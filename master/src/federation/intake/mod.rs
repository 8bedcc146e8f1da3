//! From the body of a request to a term of the sum.

pub mod checks;
pub mod lazy;
pub mod term;

pub use checks::{Rejection, UpdateChecks};
pub use lazy::UpdateCache;
pub use term::{Clip, Term};
