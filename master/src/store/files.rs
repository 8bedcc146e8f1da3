//! Names, modes and atomic replacement of state files.

use super::StoreError;
use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

/// `DIR/KIND-0000000012.fl`.
pub(super) fn path(dir: &Path, kind: &str, round: u64) -> PathBuf {
    dir.join(format!("{kind}-{round:010}.fl"))
}

/// Rounds of the files of a kind, ascending.
pub(super) fn list(dir: &Path, kind: &str) -> Result<Vec<u64>, StoreError> {
    let mut rounds = Vec::new();
    for entry in fs::read_dir(dir).map_err(StoreError::io("list", dir))? {
        let name = entry.map_err(StoreError::io("list", dir))?.file_name();
        let round: Option<u64> = name
            .to_str()
            .and_then(|name| name.strip_prefix(kind)?.strip_prefix('-')?.strip_suffix(".fl")?.parse().ok());
        rounds.extend(round);
    }
    rounds.sort_unstable();
    Ok(rounds)
}

pub(super) fn create_dir(dir: &Path) -> Result<(), StoreError> {
    if dir.is_dir() {
        return Ok(());
    }
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir).map_err(StoreError::io("create", dir))
}

/// Opens for writing, creating the file for its owner alone; what is in it stays.
pub(super) fn open_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Makes creations, renames and removals in a folder durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Writes a file so that after a crash either the old one or the whole new one is there.
pub(super) fn replace(
    path: &Path,
    content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), StoreError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let temporary = path.with_extension("tmp");
    let write = || -> io::Result<()> {
        let file = open_private(&temporary)?;
        file.set_len(0)?;
        let mut out = BufWriter::new(&file);
        content(&mut out)?;
        out.flush()?;
        drop(out);
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_dir(dir)
    };
    write().map_err(StoreError::io("write", path))
}

/// Removes a file that may be gone already; a leftover does no harm but takes room.
pub(super) fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove an old state file");
    }
}
