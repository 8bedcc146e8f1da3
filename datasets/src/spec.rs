//! Names of data sets, and of the parts to load.

use crate::limits::MAX_IMAGE_SIDE;
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
    /// `shakespeare`: the beginning of some plays, as characters; part of this crate.
    Shakespeare,
    /// `fashion-mnist`: found in `DATA_DIR` or where Debian's package puts it.
    FashionMnist,
    /// `mnist`: found in `DATA_DIR`.
    Mnist,
    /// `cifar10`: the binary version, found in `DATA_DIR`.
    Cifar10,
    /// `idx:DIR`: a folder of IDX files with MNIST's names.
    Idx(PathBuf),
    /// `images:DIR` or `images:DIR@WIDTHxHEIGHT`: one folder of PNG and JPEG files per class.
    Images {
        /// The folder of the classes, or of `train` and `test`.
        dir: PathBuf,
        /// What every image is brought to; without it, all must have one size.
        size: Option<ImageSize>,
    },
    /// `csv:FILE`, `csv:FILE?target=COLUMN`: a table with a label column, or with columns of numbers to predict.
    Csv {
        /// The table.
        file: PathBuf,
        /// The columns to predict; without them, the label column.
        target: Option<Target>,
    },
    /// `safetensors:FILE`: tensors `x` and `y`, optionally `x_test` and `y_test`.
    Safetensors(PathBuf),
    /// `text:FILE`: the next character of a text in UTF-8.
    Text(PathBuf),
    /// `bytes:FILE`: the next byte of any file.
    Bytes(PathBuf),
}

/// The size that images are brought to: `WIDTHxHEIGHT`, or `WIDTHxHEIGHTxCHANNELS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageSize {
    /// Pixels of a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// 1 for grey, 3 for red, green and blue; without it, grey if every image is grey.
    pub channels: Option<usize>,
}

/// The columns of a table that are predicted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Their names.
    pub columns: Vec<String>,
    /// What they hold.
    pub kind: TargetKind,
}

/// What the target columns of a table hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetKind {
    /// Numbers.
    Regression,
    /// 1 for a label that applies, 0 for one that does not.
    Multilabel,
    /// One label.
    Classification,
}

impl DatasetSpec {
    /// A table with a label column.
    pub fn csv(file: impl Into<PathBuf>) -> Self {
        Self::Csv { file: file.into(), target: None }
    }

    /// The data set with the columns of the setting `TARGET`: names separated by commas, optionally followed by
    /// `?task=regression` (the default), `?task=multilabel` or `?task=classification`.
    ///
    /// # Errors
    /// A sentence, if this is no table, or one that names its columns already.
    pub fn with_target(self, text: &str) -> Result<Self, String> {
        match self {
            Self::Csv { file, target: None } => {
                let (columns, task) = text.split_once("?task=").map_or((text, None), |(c, t)| (c, Some(t)));
                Ok(Self::Csv { file, target: Some(Target::new(columns, task)?) })
            }
            Self::Csv { .. } => {
                Err("the data set names its target columns already: use one of both".to_owned())
            }
            other => Err(format!("only csv:FILE has target columns, not {other}")),
        }
    }
}

impl Target {
    fn new(columns: &str, task: Option<&str>) -> Result<Self, String> {
        let columns: Vec<String> = columns.split(',').map(|name| name.trim().to_owned()).collect();
        let kind = match task {
            None | Some("regression") => TargetKind::Regression,
            Some("multilabel") => TargetKind::Multilabel,
            Some("classification") => TargetKind::Classification,
            Some(task) => {
                return Err(format!("unknown task `{task}`: use regression, multilabel or classification"));
            }
        };
        let twice = (1..columns.len()).any(|i| columns[..i].contains(&columns[i]));
        if twice || columns.iter().any(String::is_empty) {
            return Err("name different columns, separated by commas".to_owned());
        }
        if kind == TargetKind::Classification && columns.len() > 1 {
            return Err("a classification has one label column".to_owned());
        }
        Ok(Self { columns, kind })
    }
}

impl fmt::Display for ImageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)?;
        self.channels.map_or(Ok(()), |channels| write!(f, "x{channels}"))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "?target={}", self.columns.join(","))?;
        match self.kind {
            TargetKind::Regression => Ok(()),
            TargetKind::Multilabel => f.write_str("&task=multilabel"),
            TargetKind::Classification => f.write_str("&task=classification"),
        }
    }
}

impl fmt::Display for DatasetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Digits => f.write_str("digits"),
            Self::Shakespeare => f.write_str("shakespeare"),
            Self::FashionMnist => f.write_str("fashion-mnist"),
            Self::Mnist => f.write_str("mnist"),
            Self::Cifar10 => f.write_str("cifar10"),
            Self::Idx(dir) => write!(f, "idx:{}", dir.display()),
            Self::Images { dir, size: None } => write!(f, "images:{}", dir.display()),
            Self::Images { dir, size: Some(size) } => write!(f, "images:{}@{size}", dir.display()),
            Self::Csv { file, target: None } => write!(f, "csv:{}", file.display()),
            Self::Csv { file, target: Some(target) } => write!(f, "csv:{}{target}", file.display()),
            Self::Safetensors(file) => write!(f, "safetensors:{}", file.display()),
            Self::Text(file) => write!(f, "text:{}", file.display()),
            Self::Bytes(file) => write!(f, "bytes:{}", file.display()),
        }
    }
}

impl FromStr for DatasetSpec {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (kind, path) = s.split_once(':').map_or((s, None), |(kind, path)| (kind, Some(path)));
        match (kind, path.filter(|path| !path.is_empty())) {
            ("digits", None) => Ok(Self::Digits),
            ("shakespeare", None) => Ok(Self::Shakespeare),
            ("fashion-mnist", None) => Ok(Self::FashionMnist),
            ("mnist", None) => Ok(Self::Mnist),
            ("cifar10", None) => Ok(Self::Cifar10),
            ("idx", Some(path)) => Ok(Self::Idx(path.into())),
            ("images", Some(path)) => images(path),
            ("csv", Some(path)) => table(path),
            ("safetensors", Some(path)) => Ok(Self::Safetensors(path.into())),
            ("text", Some(path)) => Ok(Self::Text(path.into())),
            ("bytes", Some(path)) => Ok(Self::Bytes(path.into())),
            _ => Err(format!(
                "unknown data set `{s}`: use digits, shakespeare, fashion-mnist, mnist, cifar10, idx:DIR, images:DIR, \
                 csv:FILE, safetensors:FILE, text:FILE or bytes:FILE"
            )),
        }
    }
}

/// `DIR` or `DIR@SIZE`. An `@` that no number follows belongs to the folder's name.
fn images(text: &str) -> Result<DatasetSpec, String> {
    let sized = text.rsplit_once('@').filter(|(dir, size)| {
        !dir.is_empty() && size.starts_with(|c: char| c.is_ascii_digit()) && !size.contains('/')
    });
    let Some((dir, text)) = sized else { return Ok(DatasetSpec::Images { dir: text.into(), size: None }) };
    let numbers: Option<Vec<usize>> = text.split('x').map(|number| number.parse().ok()).collect();
    let size = match numbers.as_deref() {
        Some(&[width, height]) => ImageSize { width, height, channels: None },
        Some(&[width, height, channels @ (1 | 3)]) => ImageSize { width, height, channels: Some(channels) },
        _ => {
            return Err(format!(
                "`@{text}` is no size of images: use @WIDTHxHEIGHT, such as @32x32, or @32x32x3 (1 = grey, 3 = colours)"
            ));
        }
    };
    let sides = 1..=MAX_IMAGE_SIDE;
    if !sides.contains(&size.width) || !sides.contains(&size.height) {
        return Err(format!("`@{text}`: width and height are 1 to {MAX_IMAGE_SIDE} pixels"));
    }
    Ok(DatasetSpec::Images { dir: dir.into(), size: Some(size) })
}

/// `FILE` or `FILE?target=COLUMNS&task=TASK`. A `?` that no `target=` follows belongs to the file's name.
fn table(text: &str) -> Result<DatasetSpec, String> {
    match text.rsplit_once("?target=") {
        Some((file, target)) if !file.is_empty() => {
            let (columns, task) = target.split_once("&task=").map_or((target, None), |(c, t)| (c, Some(t)));
            Ok(DatasetSpec::Csv { file: file.into(), target: Some(Target::new(columns, task)?) })
        }
        _ => Ok(DatasetSpec::csv(text)),
    }
}

/// Which samples to keep in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Training samples only.
    Train,
    /// Training samples only, but every sample of a file or folder that has no test part of its own.
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

    /// For data with a test part of their own, which never trains.
    pub(crate) fn without_test_samples(self) -> Self {
        if self == Self::AllForTraining { Self::Train } else { self }
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
        for name in [
            "digits",
            "shakespeare",
            "fashion-mnist",
            "mnist",
            "cifar10",
            "idx:a/b",
            "images:a@b/c",
            "images:a@32x24",
            "images:a/b@1x2x3",
            "csv:x.csv",
            "csv:what?.csv",
            "csv:x.csv?target=price",
            "csv:x.csv?target=a,b&task=multilabel",
            "csv:x.csv?target=kind&task=classification",
            "safetensors:d:e.st",
            "text:notes.txt",
            "bytes:/bin/true",
        ] {
            assert_eq!(name.parse::<DatasetSpec>().unwrap().to_string(), name);
        }
        let DatasetSpec::Images { dir, size } = "images:a@b/c".parse().unwrap() else { panic!("images") };
        assert_eq!((dir, size), ("a@b/c".into(), None));
        let DatasetSpec::Images { dir, size } = "images:a@32x24".parse().unwrap() else { panic!("images") };
        assert_eq!((dir, size), ("a".into(), Some(ImageSize { width: 32, height: 24, channels: None })));
    }

    #[test]
    fn unknown_names_are_answered_with_the_known_ones() {
        for bad in ["", "digit", "digits:1", "idx", "idx:", "csv:", "imagenet", "text:", "images:"] {
            assert!(bad.parse::<DatasetSpec>().unwrap_err().contains("fashion-mnist"), "{bad}");
        }
    }

    #[test]
    fn sizes_and_targets_that_cannot_be_are_refused() {
        for (bad, what) in [
            ("images:a@32", "@WIDTHxHEIGHT"),
            ("images:a@32x32x2", "@WIDTHxHEIGHT"),
            ("images:a@0x32", "1 to"),
            ("images:a@32x99999", "1 to"),
            ("images:a@9999999999999999999999x1", "@WIDTHxHEIGHT"),
            ("csv:a.csv?target=", "different columns"),
            ("csv:a.csv?target=a,a", "different columns"),
            ("csv:a.csv?target=a&task=ranking", "unknown task"),
            ("csv:a.csv?target=a,b&task=classification", "one label column"),
        ] {
            let error = bad.parse::<DatasetSpec>().unwrap_err();
            assert!(error.contains(what), "{bad}: {error}");
        }
    }

    #[test]
    fn a_target_is_part_of_the_name_or_a_setting() {
        let target = |spec: DatasetSpec, text| spec.with_target(text).map(|spec| spec.to_string());
        assert_eq!(target(DatasetSpec::csv("a"), "x, y").unwrap(), "csv:a?target=x,y");
        let labels = target(DatasetSpec::csv("a"), "x,y?task=multilabel").unwrap();
        assert_eq!(labels, "csv:a?target=x,y&task=multilabel");
        assert!(target("csv:a?target=x".parse().unwrap(), "x").unwrap_err().contains("one of both"));
        assert!(target(DatasetSpec::Digits, "x").unwrap_err().contains("not digits"));
    }
}
