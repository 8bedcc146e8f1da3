//! `fl bench`: measurements on this machine.

pub mod aggregate;
mod load;
pub mod process;
pub mod serve;
pub mod train;
mod updates;
