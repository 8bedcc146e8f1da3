//! From the body of a request to a term of the sum.

pub mod checks;
pub mod lazy;
pub mod term;

pub use checks::{Clip, Rejection, UpdateChecks};
pub use lazy::UpdateCache;
pub use term::Term;
