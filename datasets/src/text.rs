//! Texts: the next character of a file in UTF-8, or the next byte of any file.
//!
//! The whole text is one array of tokens, a byte each where the vocabulary allows; sequences are cut out of it when
//! they are gathered. The first nine tenths are training data, the last tenth is test data. The vocabulary of
//! characters is the sorted list of those that occur anywhere in the file, so that it does not depend on the part;
//! the data set names them as its classes ([`Dataset::class_map`]). A byte order mark at the beginning is left out and
//! `\r\n` is read as `\n`, so that a file from another system has no characters of its own.

use crate::{
    DataNames, Dataset, DatasetError, DatasetSpec, Features, Normalization, Part, Split,
    limits::{MAX_CHARACTERS, MAX_SAMPLE_FEATURES, MAX_TEXT_BYTES},
};
use fl_protocol::{Input, Task};
use flate2::read::GzDecoder;
use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    sync::Arc,
};

/// Tokens of one sequence, unless the network asks for another number.
pub const DEFAULT_SEQUENCE_LENGTH: usize = 80;

const SHAKESPEARE: &[u8] = include_bytes!("../assets/shakespeare.txt.gz");
/// Its size, for a buffer that does not grow.
const SHAKESPEARE_BYTES: usize = 400_491;

/// The tokens of one part of a text. A copy shares them.
#[derive(Debug, Clone, PartialEq)]
pub struct Tokens {
    values: Arc<Values>,
    /// Tokens of the whole text, of which this is a part.
    whole: usize,
}

#[derive(Debug, PartialEq)]
enum Values {
    U8(Vec<u8>),
    U16(Vec<u16>),
}

impl Tokens {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        match &*self.values {
            Values::U8(values) => values.len(),
            Values::U16(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sequences of `length` tokens, and those that follow each of their tokens.
    pub(crate) fn gather(
        &self,
        indices: &[u32],
        length: usize,
        inputs: &mut Vec<u32>,
        targets: &mut Vec<u32>,
    ) {
        fn cut<T: Copy + Into<u32>>(
            values: &[T],
            indices: &[u32],
            length: usize,
            inputs: &mut Vec<u32>,
            targets: &mut Vec<u32>,
        ) {
            for &index in indices {
                let start = index as usize * length;
                let window = &values[start..start + length + 1];
                inputs.extend(window[..length].iter().map(|&token| token.into()));
                targets.extend(window[1..].iter().map(|&token| token.into()));
            }
        }
        inputs.clear();
        targets.clear();
        match &*self.values {
            Values::U8(values) => cut(values, indices, length, inputs, targets),
            Values::U16(values) => cut(values, indices, length, inputs, targets),
        }
    }
}

pub(crate) fn load_text(name: &str, path: &Path, part: Part) -> Result<Dataset, DatasetError> {
    let text = String::from_utf8(read(name, path)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let what = format!("byte {at} is not UTF-8: convert the file, or read it as bytes:FILE");
        DatasetError::unusable(path, what)
    })?;
    characters(name, path, &text, part)
}

pub(crate) fn load_bytes(name: &str, path: &Path, part: Part) -> Result<Dataset, DatasetError> {
    let bytes = read(name, path)?;
    dataset(name, path, Values::U8(bytes), Vec::new(), 256, part)
}

/// The bundled text keeps its test part, like the bundled digits.
pub(crate) fn load_shakespeare(part: Part) -> Result<Dataset, DatasetError> {
    let path = Path::new("the bundled shakespeare.txt.gz");
    let mut text = String::with_capacity(SHAKESPEARE_BYTES);
    GzDecoder::new(SHAKESPEARE)
        .read_to_string(&mut text)
        .map_err(|error| DatasetError::reading(path, error))?;
    characters(&DatasetSpec::Shakespeare.to_string(), path, &text, part.without_test_samples())
}

fn read(name: &str, path: &Path) -> Result<Vec<u8>, DatasetError> {
    let io = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => DatasetError::Missing {
            dataset: name.to_owned(),
            looked_in: format!("no file {}", path.display()),
            hint: "give the path of a text".to_owned(),
        },
        _ => DatasetError::Io { path: path.to_owned(), source },
    };
    let metadata = path.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(DatasetError::unusable(path, "it is not a file"));
    }
    let too_large =
        || DatasetError::too_large(path, format!("more than the {MAX_TEXT_BYTES} bytes that are read"));
    if metadata.len() > MAX_TEXT_BYTES {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    File::open(path).map_err(io)?.take(MAX_TEXT_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_TEXT_BYTES {
        return Err(too_large());
    }
    Ok(bytes)
}

fn characters(name: &str, path: &Path, text: &str, part: Part) -> Result<Dataset, DatasetError> {
    let vocabulary = vocabulary(text);
    if vocabulary.len() > MAX_CHARACTERS {
        let what = format!(
            "it has {} different characters, at most {MAX_CHARACTERS} are taken: read it as bytes:FILE",
            vocabulary.len()
        );
        return Err(DatasetError::unusable(path, what));
    }
    let ids = Ids::new(&vocabulary);
    let tokens = normalised(text).map(|c| ids.of(c));
    let values = match vocabulary.len() <= 256 {
        true => Values::U8(tokens.map(|id| id as u8).collect()),
        false => Values::U16(tokens.collect()),
    };
    let names = vocabulary.iter().map(char::to_string).collect();
    dataset(name, path, values, names, vocabulary.len(), part)
}

/// The characters without a byte order mark, and with `\n` for `\r\n`.
fn normalised(text: &str) -> impl Iterator<Item = char> {
    let mut characters = text.strip_prefix('\u{feff}').unwrap_or(text).chars().peekable();
    std::iter::from_fn(move || {
        let next = characters.next()?;
        if next == '\r' && characters.peek() == Some(&'\n') {
            return characters.next();
        }
        Some(next)
    })
}

/// The different characters of a text, in their order.
fn vocabulary(text: &str) -> Vec<char> {
    let mut seen = vec![false; char::MAX as usize + 1];
    normalised(text).for_each(|c| seen[c as usize] = true);
    let codes = (0u32..).zip(seen).filter(|(_, seen)| *seen);
    codes.filter_map(|(code, _)| char::from_u32(code)).collect()
}

/// The number of each character.
struct Ids(Vec<u16>);

impl Ids {
    fn new(vocabulary: &[char]) -> Self {
        let mut ids = vec![0; vocabulary.last().map_or(0, |&last| last as usize + 1)];
        vocabulary.iter().zip(0u16..).for_each(|(&c, id)| ids[c as usize] = id);
        Self(ids)
    }

    fn of(&self, c: char) -> u16 {
        self.0[c as usize]
    }
}

fn dataset(
    name: &str,
    path: &Path,
    values: Values,
    labels: Vec<String>,
    vocab: usize,
    part: Part,
) -> Result<Dataset, DatasetError> {
    let whole = match &values {
        Values::U8(values) => values.len(),
        Values::U16(values) => values.len(),
    };
    if whole == 0 {
        return Err(DatasetError::unusable(path, "it is empty"));
    }
    let length = DEFAULT_SEQUENCE_LENGTH;
    let (train, test) = divide(values, part);
    let split = |values: Option<Values>| match values {
        Some(values) => Split::text(Tokens { values: Arc::new(values), whole }, length),
        None => Split::empty(length),
    };
    let data = Dataset {
        name: name.to_owned(),
        names: DataNames { labels, features: Vec::new() },
        input: Input::Tokens { shape: vec![length], vocab },
        task: Task::LanguageModel,
        normalization: Normalization { mean: vec![0.0], std: vec![1.0] },
        train: split(train),
        test: split(test),
    };
    data.check_length(length)?;
    Ok(data)
}

/// The first nine tenths and the rest, as far as they are wanted.
fn divide(values: Values, part: Part) -> (Option<Values>, Option<Values>) {
    fn cut<T>(mut values: Vec<T>, part: Part) -> (Option<Vec<T>>, Option<Vec<T>>) {
        if part == Part::AllForTraining {
            return (Some(values), None);
        }
        let mut test = values.split_off(border(values.len()));
        values.shrink_to_fit();
        test.shrink_to_fit();
        (part.has_train().then_some(values), part.has_test().then_some(test))
    }
    match values {
        Values::U8(values) => {
            let (train, test) = cut(values, part);
            (train.map(Values::U8), test.map(Values::U8))
        }
        Values::U16(values) => {
            let (train, test) = cut(values, part);
            (train.map(Values::U16), test.map(Values::U16))
        }
    }
}

/// Where the test part of a text begins.
fn border(tokens: usize) -> usize {
    tokens - tokens.div_ceil(10)
}

impl Dataset {
    /// This text in sequences of `length` tokens. The tokens are shared, not copied.
    ///
    /// # Errors
    /// [`DatasetError::TooShort`] if a part is shorter than one sequence, [`DatasetError::NoText`] for other data.
    pub fn with_sequence_length(&self, length: usize) -> Result<Self, DatasetError> {
        let Input::Tokens { vocab, .. } = self.input else {
            return Err(DatasetError::NoText { dataset: self.name.clone() });
        };
        self.check_length(length)?;
        let cut = |split: &Split| match split.features() {
            Features::Text(tokens) => Split::text(tokens.clone(), length),
            _ => Split::empty(length),
        };
        let (train, test) = (cut(&self.train), cut(&self.test));
        Ok(Self { input: Input::Tokens { shape: vec![length], vocab }, train, test, ..self.shallow() })
    }

    /// The data in the sequences that `input` takes: the same data, unless it is a text and they differ.
    ///
    /// # Errors
    /// As [`Dataset::with_sequence_length`].
    pub fn cut_for(self: &Arc<Self>, input: &Input) -> Result<Arc<Self>, DatasetError> {
        match (&self.input, input) {
            (Input::Tokens { shape: own, .. }, Input::Tokens { shape, .. }) if own != shape => {
                Ok(Arc::new(self.with_sequence_length(shape.first().copied().unwrap_or(0))?))
            }
            _ => Ok(self.clone()),
        }
    }

    /// Everything but the samples.
    fn shallow(&self) -> Self {
        Self {
            name: self.name.clone(),
            names: self.names.clone(),
            input: self.input.clone(),
            task: self.task.clone(),
            normalization: self.normalization.clone(),
            train: Split::empty(0),
            test: Split::empty(0),
        }
    }

    /// Checks that every part that was loaded holds a sequence.
    fn check_length(&self, length: usize) -> Result<(), DatasetError> {
        if length == 0 || length > MAX_SAMPLE_FEATURES {
            return Err(DatasetError::SequenceLength { length });
        }
        // The test part first: it needs the longer text.
        let parts = [(&self.test, true), (&self.train, false)];
        let short = parts.iter().find_map(|(split, test)| match split.features() {
            Features::Text(tokens) if tokens.len() <= length => Some((tokens.whole, tokens.len(), *test)),
            _ => None,
        });
        let Some((whole, held, test)) = short else { return Ok(()) };
        // The least text of which the part holds `length + 1` tokens.
        let needed = match (test, held == whole) {
            (true, _) => 10 * length + 1,
            (false, true) => length + 1,
            (false, false) => (10 * (length + 1)).div_ceil(9),
        };
        Err(DatasetError::TooShort {
            dataset: self.name.clone(),
            unit: if self.names.labels.is_empty() { "bytes" } else { "characters" },
            whole,
            needed,
            length,
        })
    }
}
