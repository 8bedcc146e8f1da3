//! What the federations of one process share: threads, time, and whether it is about to end.

use super::{clock::Clock, pool::Pool};
use crate::settings::Config;
use std::{
    io,
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering},
};
use tokio::sync::watch;

/// One process.
#[derive(Debug)]
pub struct Host {
    /// Time.
    pub clock: Clock,
    /// Threads for CPU work.
    pub pool: Pool,
    /// True once no more requests should come here, though they are still answered.
    pub retiring: AtomicBool,
    /// True once a shutdown has begun.
    pub draining: watch::Sender<bool>,
}

impl Host {
    /// Starts the threads.
    ///
    /// # Errors
    /// If the system has no threads to give.
    pub fn start(config: &Config) -> io::Result<Self> {
        Ok(Self {
            clock: Clock::start(),
            pool: Pool::new(config.decode_threads(), config.limits.max_queue)?,
            retiring: AtomicBool::new(false),
            draining: watch::channel(false).0,
        })
    }

    /// Whether requests should come here.
    pub fn is_ready(&self) -> bool {
        !self.retiring.load(Ordering::Relaxed) && !self.is_draining()
    }

    /// Whether a shutdown has begun.
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// Its address.
    pub ip: IpAddr,
    /// Whether it has shown a client certificate of an accepted authority.
    pub has_certificate: bool,
}
