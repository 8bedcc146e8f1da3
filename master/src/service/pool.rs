//! Threads for CPU-bound work (decoding, adding, serializing), apart from the async threads.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};
use tokio::sync::{Semaphore, oneshot};

/// How long a request waits for a place in the queue before it is turned away.
const PATIENCE: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce() + Send>;

/// Why a job has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolError {
    /// The queue is full and stays full.
    Busy,
    /// The job panicked.
    Panicked,
}

/// A fixed number of threads and a queue with a bound.
#[derive(Debug)]
pub struct Pool {
    jobs: mpsc::Sender<Job>,
    places: Arc<Semaphore>,
}

impl Pool {
    /// Starts the threads; they end when the pool is dropped.
    ///
    /// # Errors
    /// If the system has no threads to give.
    pub fn new(threads: usize, queue: usize) -> io::Result<Self> {
        let (jobs, receiver) = mpsc::channel::<Job>();
        let receiver = Arc::new(Mutex::new(receiver));
        for i in 0..threads {
            let receiver = receiver.clone();
            thread::Builder::new().name(format!("decode-{i}")).spawn(move || {
                loop {
                    let job = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    match job {
                        // A panic is reported by the dropped result; the thread lives on.
                        Ok(job) => drop(catch_unwind(AssertUnwindSafe(job))),
                        Err(_) => break,
                    }
                }
            })?;
        }
        Ok(Self { jobs, places: Arc::new(Semaphore::new(queue)) })
    }

    /// Runs a request's job, or turns it away if no place in the queue gets free in time.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PoolError> {
        let place = tokio::time::timeout(PATIENCE, self.places.clone().acquire_owned())
            .await
            .map_err(|_| PoolError::Busy)?
            .map_err(|_| PoolError::Busy)?;
        self.run_always(move || {
            let _place = place;
            job()
        })
        .await
    }

    /// Runs a job of the master's own, which no bound may hold up.
    pub async fn run_always<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PoolError> {
        let (done, result) = oneshot::channel();
        let job = Box::new(move || {
            let _ = done.send(job());
        });
        self.jobs.send(job).map_err(|_| PoolError::Panicked)?;
        result.await.map_err(|_| PoolError::Panicked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panicking_job_is_an_error_and_the_next_one_runs() {
        let pool = Pool::new(1, 4).unwrap();
        assert_eq!(pool.run(|| panic!("on purpose")).await, Err::<(), _>(PoolError::Panicked));
        assert_eq!(pool.run(|| 7).await, Ok(7));
    }
}
