//! Client state carried from round to round, in bounded memory, beyond that on disk.

use fl_quant::Feedback;
use fl_worker::{ClientMemory, LastUpdate, Personal};
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
    memory: HashMap<usize, ClientMemory>,
    /// Bytes of memory that are left.
    budget: usize,
    /// The clients whose state is in the file.
    on_disk: HashMap<usize, Place>,
    path: PathBuf,
    file: Option<File>,
}

/// Most vectors of a client: residual, control variate, last update, own tensors.
const VECTORS: usize = 4;

/// A client's state in the file.
#[derive(Debug, Clone)]
struct Place {
    /// Lengths of the vectors, one after the other.
    lengths: [usize; VECTORS],
    /// Round of the last update, if there is one.
    last_round: Option<u64>,
    /// Pattern of the own tensors, if there are any.
    pattern: Option<String>,
}

impl CarriedStore {
    /// An empty store for a model of `parameters` parameters. At most `budget` bytes stay in memory; the
    /// file at `path` is created when they do not suffice.
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

    /// Removes and returns the state of `client`; empty if there is none.
    pub fn take(&mut self, client: usize) -> io::Result<ClientMemory> {
        if let Some(carried) = self.memory.remove(&client) {
            self.budget += bytes(&carried);
            return Ok(carried);
        }
        match self.on_disk.remove(&client) {
            Some(place) => self.read(client, place),
            None => Ok(ClientMemory::default()),
        }
    }

    /// A copy of the state of `client`.
    pub fn get(&mut self, client: usize) -> io::Result<ClientMemory> {
        if let Some(carried) = self.memory.get(&client) {
            return Ok(carried.clone());
        }
        match self.on_disk.get(&client).cloned() {
            Some(place) => self.read(client, place),
            None => Ok(ClientMemory::default()),
        }
    }

    /// Replaces the state of `client`.
    pub fn put(&mut self, client: usize, mut carried: ClientMemory) -> io::Result<()> {
        self.take(client)?;
        // The residual of a lossless update is zero and need not be kept.
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
        let vectors = vectors(&carried);
        let place = Place {
            lengths: vectors.map(<[f32]>::len),
            last_round: carried.last_update.as_ref().map(|last| last.round),
            pattern: carried.personal.as_ref().map(|personal| personal.pattern.clone()),
        };
        let record: Vec<u8> = vectors.into_iter().flatten().flat_map(|v| v.to_le_bytes()).collect();
        let start = self.start(client);
        let file = self.file()?;
        file.seek(SeekFrom::Start(start))?;
        file.write_all(&record)?;
        self.on_disk.insert(client, place);
        Ok(())
    }

    fn read(&mut self, client: usize, place: Place) -> io::Result<ClientMemory> {
        let start = self.start(client);
        let mut record = vec![0; size_of::<f32>() * place.lengths.iter().sum::<usize>()];
        let file = self.file()?;
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut record)?;
        let (values, _) = record.as_chunks::<4>();
        let mut values = values.iter().map(|bytes| f32::from_le_bytes(*bytes));
        let [residual, control, last, own] = place.lengths.map(|len| values.by_ref().take(len).collect());
        let last = place.last_round.map(|round| LastUpdate { round, values: last });
        Ok(ClientMemory {
            feedback: Feedback::from_residual(residual),
            control_variate: control,
            last_update: last,
            personal: place.pattern.map(|pattern| Personal { pattern, values: own }),
        })
    }

    fn start(&self, client: usize) -> u64 {
        (client * VECTORS * self.parameters * size_of::<f32>()) as u64
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

fn vectors(carried: &ClientMemory) -> [&[f32]; VECTORS] {
    let last = carried.last_update.as_ref().map_or(&[][..], |last| &last.values);
    let own = carried.personal.as_ref().map_or(&[][..], |personal| &personal.values);
    [carried.feedback.residual(), &carried.control_variate, last, own]
}

fn bytes(carried: &ClientMemory) -> usize {
    size_of::<f32>() * vectors(carried).iter().map(|vector| vector.len()).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carried(seed: usize, control: bool) -> ClientMemory {
        let values = |from: usize| (0..10).map(|i| (from + i) as f32).collect::<Vec<f32>>();
        let last =
            seed.is_multiple_of(2).then(|| LastUpdate { round: seed as u64, values: values(seed + 200) });
        let control = if control { values(seed + 100) } else { Vec::new() };
        ClientMemory {
            feedback: Feedback::from_residual(values(seed + 1)),
            control_variate: control,
            last_update: last,
            personal: seed
                .is_multiple_of(5)
                .then(|| Personal { pattern: "head".into(), values: vec![seed as f32; 4] }),
        }
    }

    #[test]
    fn memory_and_disk_give_back_what_they_got() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("carried");
        // The budget fits two clients without a control variate.
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
                assert_eq!(found, expected);
            }
            assert!(store.take(client).unwrap().feedback.residual().is_empty(), "it is taken out");
        }
        drop(store);
        assert!(!path.exists());
    }

    #[test]
    fn a_residual_of_zeros_takes_no_room() {
        let mut store = CarriedStore::new(10, 0, Path::new("/nowhere/file"));
        let zeros = ClientMemory { feedback: Feedback::new(10), ..ClientMemory::default() };
        store.put(3, zeros).unwrap();
        assert!(store.take(3).unwrap().feedback.residual().is_empty());
    }
}
