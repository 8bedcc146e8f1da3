//! What clients carry from round to round, within a bound of memory: beyond it, on disk.

use fl_quant::Feedback;
use fl_worker::Carried;
use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// Residuals and control variates of all clients that have any.
#[derive(Debug)]
pub struct CarriedStore {
    parameters: usize,
    memory: HashMap<usize, Carried>,
    /// Bytes that may still be taken.
    budget: usize,
    /// Lengths of residual and control variate of the clients that are in the file.
    on_disk: HashMap<usize, [usize; 2]>,
    path: PathBuf,
    file: Option<File>,
}

impl CarriedStore {
    /// Nothing yet, for a model of `parameters` parameters. At most `budget` bytes stay in memory; the
    /// file at `path` is made when they do not suffice.
    pub fn new(parameters: usize, budget: usize, path: &Path) -> Self {
        Self {
            parameters,
            memory: HashMap::new(),
            budget,
            on_disk: HashMap::new(),
            path: path.to_owned(),
            file: None,
        }
    }

    /// Takes out what `client` carries; nothing at first.
    pub fn take(&mut self, client: usize) -> io::Result<Carried> {
        if let Some(carried) = self.memory.remove(&client) {
            self.budget += bytes(&carried);
            return Ok(carried);
        }
        match self.on_disk.remove(&client) {
            Some(lengths) => self.read(client, lengths),
            None => Ok(Carried::default()),
        }
    }

    /// A copy of what `client` carries.
    pub fn get(&mut self, client: usize) -> io::Result<Carried> {
        if let Some(carried) = self.memory.get(&client) {
            return Ok(carried.clone());
        }
        match self.on_disk.get(&client).copied() {
            Some(lengths) => self.read(client, lengths),
            None => Ok(Carried::default()),
        }
    }

    /// Keeps what `client` carries from now on.
    pub fn put(&mut self, client: usize, mut carried: Carried) -> io::Result<()> {
        self.take(client)?;
        // A lossless update leaves nothing behind.
        if carried.feedback.residual().iter().all(|value| *value == 0.0) {
            carried.feedback = Feedback::default();
        }
        let needed = bytes(&carried);
        if needed == 0 {
            return Ok(());
        }
        if needed <= self.budget {
            self.budget -= needed;
            self.memory.insert(client, carried);
            return Ok(());
        }
        let lengths = [carried.feedback.residual().len(), carried.control.len()];
        let record: Vec<u8> = carried
            .feedback
            .residual()
            .iter()
            .chain(&carried.control)
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let start = self.start(client);
        let file = self.file()?;
        file.seek(SeekFrom::Start(start))?;
        file.write_all(&record)?;
        self.on_disk.insert(client, lengths);
        Ok(())
    }

    fn read(&mut self, client: usize, lengths: [usize; 2]) -> io::Result<Carried> {
        let start = self.start(client);
        let mut record = vec![0; 4 * (lengths[0] + lengths[1])];
        let file = self.file()?;
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut record)?;
        let (values, _) = record.as_chunks::<4>();
        let mut values = values.iter().map(|bytes| f32::from_le_bytes(*bytes));
        let feedback = Feedback::from_residual(values.by_ref().take(lengths[0]).collect());
        Ok(Carried { feedback, control: values.collect() })
    }

    fn start(&self, client: usize) -> u64 {
        (client * 2 * self.parameters * size_of::<f32>()) as u64
    }

    fn file(&mut self) -> io::Result<&mut File> {
        let file = match self.file.take() {
            Some(file) => file,
            None => OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&self.path)?,
        };
        Ok(self.file.insert(file))
    }
}

impl Drop for CarriedStore {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn bytes(carried: &Carried) -> usize {
    size_of::<f32>() * (carried.feedback.residual().len() + carried.control.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carried(seed: usize, control: bool) -> Carried {
        let values = |from: usize| (0..10).map(|i| (from + i) as f32).collect::<Vec<f32>>();
        let control = if control { values(seed + 100) } else { Vec::new() };
        Carried { feedback: Feedback::from_residual(values(seed + 1)), control }
    }

    #[test]
    fn memory_and_disk_give_back_what_they_got() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("carried");
        // Room for two of the small ones.
        let mut store = CarriedStore::new(10, 90, &path);
        for client in 0..20 {
            store.put(client, carried(client, client % 3 == 0)).unwrap();
        }
        assert!(path.exists());
        for client in (0..20).rev() {
            let expected = carried(client, client % 3 == 0);
            let copy = store.get(client).unwrap();
            let found = store.take(client).unwrap();
            for found in [copy, found] {
                assert_eq!(
                    (found.feedback, found.control),
                    (expected.feedback.clone(), expected.control.clone())
                );
            }
            assert!(store.take(client).unwrap().feedback.residual().is_empty(), "it is taken out");
        }
        drop(store);
        assert!(!path.exists());
    }

    #[test]
    fn a_residual_of_zeros_takes_no_room() {
        let mut store = CarriedStore::new(10, 0, Path::new("/nowhere/file"));
        let zeros = Carried { feedback: Feedback::new(10), control: Vec::new() };
        store.put(3, zeros).unwrap();
        assert!(store.take(3).unwrap().feedback.residual().is_empty());
    }
}
