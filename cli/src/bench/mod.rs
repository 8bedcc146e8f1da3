//! `fl bench`: measurements on this machine.

pub mod train;
