//! Names of data sets, and of the parts to load.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// A data set, as settings name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatasetSpec {
    /// `digits`: the 8 x 8 optical digits, part of this crate.
    Digits,
    /// `fashion-mnist`: found in `DATA_DIR` or where Debian's package puts it.
    FashionMnist,
    /// `mnist`: found in `DATA_DIR`.
    Mnist,
    /// `idx:DIR`: a folder of IDX files with MNIST's names.
    Idx(PathBuf),
    /// `cifar10`: the binary version, found in `DATA_DIR`.
    Cifar10,
    /// `csv:FILE`: a table with a label column.
    Csv(PathBuf),
    /// `safetensors:FILE`: tensors `x` and `y`, optionally `x_test` and `y_test`.
    Safetensors(PathBuf),
}

impl fmt::Display for DatasetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Digits => f.write_str("digits"),
            Self::FashionMnist => f.write_str("fashion-mnist"),
            Self::Mnist => f.write_str("mnist"),
            Self::Idx(dir) => write!(f, "idx:{}", dir.display()),
            Self::Cifar10 => f.write_str("cifar10"),
            Self::Csv(file) => write!(f, "csv:{}", file.display()),
            Self::Safetensors(file) => write!(f, "safetensors:{}", file.display()),
        }
    }
}

impl FromStr for DatasetSpec {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (kind, path) = s.split_once(':').map_or((s, None), |(kind, path)| (kind, Some(path)));
        match (kind, path.filter(|path| !path.is_empty())) {
            ("digits", None) => Ok(Self::Digits),
            ("fashion-mnist", None) => Ok(Self::FashionMnist),
            ("mnist", None) => Ok(Self::Mnist),
            ("cifar10", None) => Ok(Self::Cifar10),
            ("idx", Some(path)) => Ok(Self::Idx(path.into())),
            ("csv", Some(path)) => Ok(Self::Csv(path.into())),
            ("safetensors", Some(path)) => Ok(Self::Safetensors(path.into())),
            _ => Err(format!(
                "unknown data set `{s}`: use digits, fashion-mnist, mnist, cifar10, idx:DIR, csv:FILE or \
                 safetensors:FILE"
            )),
        }
    }
}

/// Which samples to keep in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Training samples only.
    Train,
    /// Training samples only, but every sample of a `csv` or `safetensors` file that has no test part of
    /// its own.
    AllForTraining,
    /// Test samples only.
    Test,
    /// Training and test samples.
    Both,
}

impl Part {
    /// Whether training samples are requested.
    pub fn has_train(self) -> bool {
        self != Self::Test
    }

    /// Whether test samples are requested.
    pub fn has_test(self) -> bool {
        !matches!(self, Self::Train | Self::AllForTraining)
    }
}

/// A path as given, or below `data_dir` if it is relative and exists only there.
pub(crate) fn resolve(path: &Path, data_dir: Option<&Path>) -> PathBuf {
    match data_dir {
        Some(dir) if path.is_relative() && !path.exists() && dir.join(path).exists() => dir.join(path),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back() {
        for name in
            ["digits", "fashion-mnist", "mnist", "cifar10", "idx:a/b", "csv:x.csv", "safetensors:d:e.st"]
        {
            assert_eq!(name.parse::<DatasetSpec>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn unknown_names_are_answered_with_the_known_ones() {
        for bad in ["", "digit", "digits:1", "idx", "idx:", "csv:", "imagenet"] {
            assert!(bad.parse::<DatasetSpec>().unwrap_err().contains("fashion-mnist"), "{bad}");
        }
    }
}
