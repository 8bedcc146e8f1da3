//! Threads that share the work on one update.
//!
//! Work is cut by the sizes of the tensors alone, and partial sums are added in the order of the parts: no
//! result depends on the number of threads.

use std::{
    io,
    sync::{Mutex, PoisonError},
};

/// A pool of threads, or the caller's thread alone.
#[derive(Debug, Default)]
pub struct Threads(Option<rayon::ThreadPool>);

impl Threads {
    /// The caller's thread alone.
    pub const fn one() -> Self {
        Self(None)
    }

    /// Starts `count` threads; up to 1 the caller's own does the work.
    ///
    /// # Errors
    /// If the system does not start so many.
    pub fn new(count: usize) -> io::Result<Self> {
        if count <= 1 {
            return Ok(Self::one());
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(count)
            .thread_name(|index| format!("codec-{index}"))
            .build()
            .map_err(io::Error::other)?;
        Ok(Self(Some(pool)))
    }

    /// Number of threads.
    pub fn count(&self) -> usize {
        self.0.as_ref().map_or(1, rayon::ThreadPool::current_num_threads)
    }

    /// Calls `work` on every item, which one thread after the other takes from the front. Each thread has
    /// one of `scratch`; there are at most as many threads as elements of it.
    pub(crate) fn run<S: Send, T: Send>(
        &self,
        scratch: &mut [S],
        items: impl ExactSizeIterator<Item = T> + Send,
        work: impl Fn(&mut S, T) + Sync,
    ) {
        let jobs = items.len().min(scratch.len());
        match (&self.0, scratch.first_mut()) {
            (Some(pool), _) if jobs > 1 => {
                let (queue, work) = (Mutex::new(items), &work);
                let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                let next = &next;
                pool.scope(|scope| {
                    for own in &mut scratch[..jobs] {
                        scope.spawn(move |_| {
                            while let Some(item) = next() {
                                work(own, item);
                            }
                        });
                    }
                });
            }
            (_, Some(own)) => items.for_each(|item| work(own, item)),
            (_, None) => debug_assert!(false, "there is scratch for at least one thread"),
        }
    }

    /// [`Self::run`] for work that needs no scratch.
    pub(crate) fn each<T: Send>(
        &self,
        items: impl ExactSizeIterator<Item = T> + Send,
        work: impl Fn(T) + Sync,
    ) {
        self.run(&mut vec![(); self.count()], items, |(), item| work(item));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_worked_on_once() {
        for count in [0, 1, 2, 5] {
            let threads = Threads::new(count).unwrap();
            assert_eq!(threads.count(), count.max(1));
            for items in [0, 1, 2, 100] {
                let mut seen = vec![0; items];
                let mut scratch = vec![0; threads.count()];
                threads.run(&mut scratch, seen.iter_mut().enumerate(), |own, (index, seen)| {
                    *seen += index + 1;
                    *own += 1;
                });
                assert!(seen.iter().enumerate().all(|(index, seen)| *seen == index + 1));
                assert_eq!(scratch.iter().sum::<usize>(), items);
            }
        }
    }
}
