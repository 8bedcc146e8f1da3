//! `WORKER_STATE_DIR`: what a client carries from round to round, in a file that survives the process.
//!
//! `"FLW1"`, the length of the header (u32, little-endian), the header (JSON), the vectors (f32,
//! little-endian), and a CRC-32 of all that. The header names the worker and the model's layout: a residual of
//! another worker or model is not used.

use crate::client_state::{ClientMemory, LastUpdate, Personal, personal_parts};
use fl_protocol::{ModelLayout, WorkerId};
use fl_quant::Feedback;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};
use thiserror::Error;

const MAGIC: &[u8; 4] = b"FLW1";
/// A pattern may have 1000 bytes, each of which may take six in JSON.
const MAX_HEADER_BYTES: usize = 8192;
const CRC_BYTES: usize = 4;
/// Values that are written at a time.
const PIECE: usize = 1 << 14;
/// Residual, control variate, last update.
const VECTORS: usize = 3;

/// Why a state file is not used.
#[derive(Debug, Error)]
pub(crate) enum StateError {
    /// The system refuses to read it.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Its content is not what was written.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// It belongs to something else.
    #[error("{0}")]
    Foreign(String),
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    worker_id: WorkerId,
    /// CRC-32 of the tensors' names and shapes.
    layout: u32,
    /// The round of the last acknowledged update.
    round: u64,
    /// Elements of each vector: as many as the model has parameters, or none.
    lengths: [usize; VECTORS],
    last_update_round: Option<u64>,
    /// The pattern of the personal tensors, whose values come last; they fill the rest of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    local_layers: Option<String>,
}

/// What a worker had acknowledged last, and carries on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SavedState {
    /// The round of the last acknowledged update.
    pub(crate) round: u64,
    /// What is carried on.
    pub(crate) memory: ClientMemory,
}

/// The file of one worker.
#[derive(Debug, Clone)]
pub(crate) struct StateFile {
    path: PathBuf,
    worker_id: WorkerId,
}

impl StateFile {
    /// The file of `worker_id` in `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// If the folder cannot be made or written to.
    pub(crate) fn open(dir: &Path, worker_id: &WorkerId) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let file = Self { path: dir.join(format!("{worker_id}.state")), worker_id: worker_id.clone() };
        // Said at the start, not after the first round.
        File::create(file.temporary())?;
        fs::remove_file(file.temporary())?;
        Ok(file)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What was saved for a model of this layout; none if there is no file.
    ///
    /// # Errors
    /// A file that is damaged, or another worker's or model's.
    pub(crate) fn load(&self, layout: &ModelLayout) -> Result<Option<SavedState>, StateError> {
        let parameters = layout.parameters();
        let most = MAGIC.len() + 4 + MAX_HEADER_BYTES + (VECTORS + 1) * 4 * parameters + CRC_BYTES;
        let mut bytes = Vec::new();
        match File::open(&self.path) {
            Ok(file) => file.take(most as u64 + 1).read_to_end(&mut bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let (header, values) = parse(&bytes)?;
        if header.worker_id != self.worker_id {
            return Err(StateError::Foreign(format!("it is of the worker {}", header.worker_id)));
        }
        if header.layout != layout_crc(layout) {
            return Err(StateError::Foreign("it is of another model".to_owned()));
        }
        let fits = |length: usize| length == 0 || length == parameters;
        let total = header.lengths.iter().try_fold(0usize, |sum, length| sum.checked_add(*length));
        let personal = total.and_then(|total| (values.len() / 4).checked_sub(total));
        let personal_fits = |len| match &header.local_layers {
            Some(pattern) => personal_parts(pattern, layout, len).is_some(),
            None => len == 0,
        };
        if !header.lengths.iter().all(|length| fits(*length)) || !personal.is_some_and(personal_fits) {
            return Err(StateError::Damaged("its vectors do not fit the model"));
        }
        let mut values = values.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        let [residual, control_variate, last] =
            header.lengths.map(|len| values.by_ref().take(len).collect::<Vec<f32>>());
        let personal = header.local_layers.map(|pattern| Personal { pattern, values: values.collect() });
        let own = personal.as_ref().map_or(&[][..], |personal| &personal.values);
        let all = [&residual[..], &control_variate, &last, own];
        if all.into_iter().flatten().any(|value| !value.is_finite()) {
            return Err(StateError::Damaged("a value is not finite"));
        }
        let last_update = header
            .last_update_round
            .filter(|_| !last.is_empty())
            .map(|round| LastUpdate { round, values: last });
        let memory = ClientMemory {
            feedback: Feedback::from_residual(residual),
            control_variate,
            last_update,
            personal,
        };
        Ok(Some(SavedState { round: header.round, memory }))
    }

    /// Replaces the file by what a worker carries after `round`: after a crash either the old one or the whole new
    /// one is there.
    ///
    /// # Errors
    /// If the system refuses; the old file is then as it was.
    pub(crate) fn save(&self, layout: &ModelLayout, round: u64, memory: &ClientMemory) -> io::Result<()> {
        let temporary = self.temporary();
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&temporary)?;
        self.write(&mut file, layout, round, memory)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&temporary, &self.path)?;
        File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all()
    }

    /// Writes the content piece by piece: a copy of the vectors would be as large as the model.
    fn write(
        &self,
        file: &mut File,
        layout: &ModelLayout,
        round: u64,
        memory: &ClientMemory,
    ) -> io::Result<()> {
        let ClientMemory { feedback, control_variate, last_update, personal } = memory;
        let last = last_update.as_ref().map_or(&[][..], |last| &last.values);
        let own = personal.as_ref().map_or(&[][..], |personal| &personal.values);
        let header = serde_json::to_vec(&Header {
            worker_id: self.worker_id.clone(),
            layout: layout_crc(layout),
            round,
            lengths: [feedback.residual(), control_variate, last].map(<[f32]>::len),
            last_update_round: last_update.as_ref().map(|last| last.round),
            local_layers: personal.as_ref().map(|personal| personal.pattern.clone()),
        })?;
        let mut crc = crc32fast::Hasher::new();
        let mut write = |bytes: &[u8]| {
            crc.update(bytes);
            file.write_all(bytes)
        };
        write(MAGIC)?;
        write(&(header.len() as u32).to_le_bytes())?;
        write(&header)?;
        let mut piece = Vec::with_capacity(4 * PIECE);
        for values in
            [feedback.residual(), control_variate, last, own].into_iter().flat_map(|v| v.chunks(PIECE))
        {
            piece.clear();
            piece.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            write(&piece)?;
        }
        file.write_all(&crc.finalize().to_le_bytes())
    }

    fn temporary(&self) -> PathBuf {
        self.path.with_extension("state.tmp")
    }
}

/// The header, and the bytes of the vectors.
fn parse(bytes: &[u8]) -> Result<(Header, &[u8]), StateError> {
    let (content, crc) =
        bytes.split_last_chunk::<CRC_BYTES>().ok_or(StateError::Damaged("it is too short"))?;
    if crc32fast::hash(content) != u32::from_le_bytes(*crc) {
        return Err(StateError::Damaged("its checksum is wrong"));
    }
    let rest = content.strip_prefix(MAGIC).ok_or(StateError::Damaged("it is of another format"))?;
    let (length, rest) = rest.split_first_chunk::<4>().ok_or(StateError::Damaged("it is too short"))?;
    let length = u32::from_le_bytes(*length) as usize;
    let (header, values) = rest
        .split_at_checked(length)
        .filter(|(_, values)| length <= MAX_HEADER_BYTES && values.len().is_multiple_of(4))
        .ok_or(StateError::Damaged("its lengths do not fit"))?;
    let header =
        serde_json::from_slice(header).map_err(|_| StateError::Damaged("its header cannot be read"))?;
    Ok((header, values))
}

fn layout_crc(layout: &ModelLayout) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    for tensor in layout.tensors() {
        crc.update(format!("{} {:?}\n", tensor.name, tensor.shape).as_bytes());
    }
    crc.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use fl_model::ModelSpec;

    fn layout(classes: usize) -> ModelLayout {
        ModelSpec::classifier("softmax", &[1, 2, 2], classes, 0).unwrap().layout()
    }

    fn state(layout: &ModelLayout) -> SavedState {
        let values =
            |from: usize| (from..from + layout.parameters()).map(|i| i as f32 * 0.1).collect::<Vec<_>>();
        SavedState {
            round: 7,
            memory: ClientMemory {
                feedback: Feedback::from_residual(values(1)),
                control_variate: Vec::new(),
                last_update: Some(LastUpdate { round: 6, values: values(100) }),
                personal: Some(Personal { pattern: "bias".into(), values: vec![0.5, -1.0, 2.0] }),
            },
        }
    }

    fn file(dir: &Path, worker: &str) -> StateFile {
        StateFile::open(dir, &worker.parse().unwrap()).unwrap()
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let (dir, layout) = (tempfile::tempdir().unwrap(), layout(3));
        let file = file(&dir.path().join("a/b"), "w");
        assert_eq!(file.load(&layout).unwrap(), None);
        let state = state(&layout);
        file.save(&layout, state.round, &state.memory).unwrap();
        assert_eq!(file.load(&layout).unwrap(), Some(state));
        let empty = SavedState { round: 8, memory: ClientMemory::default() };
        file.save(&layout, empty.round, &empty.memory).unwrap();
        assert_eq!(file.load(&layout).unwrap(), Some(empty));
        assert_eq!(fs::read_dir(file.path().parent().unwrap()).unwrap().count(), 1, "nothing is left over");
    }

    #[test]
    fn large_vectors_are_written_piece_by_piece() {
        let dir = tempfile::tempdir().unwrap();
        let layout = ModelSpec::classifier("softmax", &[1, 100, 100], 5, 0).unwrap().layout();
        let (file, state) = (file(dir.path(), "w"), state(&layout));
        let memory = ClientMemory { personal: None, ..state.memory };
        file.save(&layout, 7, &memory).unwrap();
        assert_eq!(file.load(&layout).unwrap(), Some(SavedState { round: 7, memory }));
    }

    #[test]
    fn personal_values_that_are_not_those_of_their_pattern_are_refused() {
        let (dir, layout) = (tempfile::tempdir().unwrap(), layout(3));
        let file = file(dir.path(), "w");
        let mut memory = state(&layout).memory;
        for (pattern, values) in [("bias", 2), ("weight", 3), ("none", 3), ("(", 3)] {
            memory.personal = Some(Personal { pattern: pattern.into(), values: vec![0.0; values] });
            file.save(&layout, 7, &memory).unwrap();
            assert!(matches!(file.load(&layout), Err(StateError::Damaged(_))), "{pattern} {values}");
        }
    }

    #[test]
    fn a_file_that_was_damaged_anywhere_is_refused() {
        let (dir, layout) = (tempfile::tempdir().unwrap(), layout(3));
        let file = file(dir.path(), "w");
        file.save(&layout, 7, &state(&layout).memory).unwrap();
        let good = fs::read(file.path()).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            for bytes in [&good[..at], &bad] {
                fs::write(file.path(), bytes).unwrap();
                assert!(matches!(file.load(&layout), Err(StateError::Damaged(_))), "at {at}");
            }
        }
        fs::write(file.path(), [&good[..], &vec![0; 1 << 20]].concat()).unwrap();
        assert!(file.load(&layout).is_err());
    }

    #[test]
    fn a_file_of_another_worker_or_model_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (file(dir.path(), "ours"), file(dir.path(), "theirs"));
        ours.save(&layout(3), 7, &state(&layout(3)).memory).unwrap();
        fs::copy(ours.path(), theirs.path()).unwrap();
        assert!(theirs.load(&layout(3)).unwrap_err().to_string().contains("the worker ours"));
        assert!(ours.load(&layout(4)).unwrap_err().to_string().contains("another model"));
        assert_eq!(theirs.load(&layout(3)).unwrap_err().to_string(), "it is of the worker ours");
    }
}
