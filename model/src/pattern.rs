//! Tensors chosen by name.

use fl_protocol::{ModelLayout, TensorLayout};
use regex_lite::{Regex, RegexBuilder};
use std::{fmt, ops::Range, str::FromStr};
use thiserror::Error;

/// Longest pattern, in bytes.
const MAX_BYTES: usize = 1000;
/// Most memory of a compiled pattern, in bytes.
const MAX_COMPILED_BYTES: usize = 1 << 20;
/// Names that a refusal lists.
const LISTED: usize = 20;

/// Names of the settings.
const TRAINABLE: &str = "TRAINABLE";
const LOCAL_LAYERS: &str = "LOCAL_LAYERS";

/// A regular expression that chooses tensors: those in whose name it is found, anywhere unless `^` and `$` say where.
#[derive(Debug, Clone)]
pub struct TensorPattern(Regex);

impl TensorPattern {
    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The parts of the flat vector that hold chosen tensors, ascending; neighbours are one part.
    ///
    /// # Errors
    /// If it chooses none: a sentence with the names that there are.
    pub fn ranges(&self, layout: &ModelLayout) -> Result<Vec<Range<usize>>, String> {
        let ranges = ranges_of(layout, |tensor| self.chooses(tensor));
        if !ranges.is_empty() {
            return Ok(ranges);
        }
        let names: Vec<_> = layout.tensors().iter().take(LISTED).map(|tensor| tensor.name.as_str()).collect();
        let more = match layout.tensors().len().saturating_sub(LISTED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Err(format!("no tensor has such a name, there are {}{more}", names.join(", ")))
    }

    fn chooses(&self, tensor: &TensorLayout) -> bool {
        self.0.is_match(&tensor.name)
    }
}

/// The parts of the flat vector with the tensors that `chosen` names, ascending; neighbours are one part.
fn ranges_of(layout: &ModelLayout, chosen: impl Fn(&TensorLayout) -> bool) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for tensor in layout.tensors().iter().filter(|tensor| chosen(tensor)) {
        let end = tensor.offset + tensor.len;
        match ranges.last_mut() {
            Some(last) if last.end == tensor.offset => last.end = end,
            _ => ranges.push(tensor.offset..end),
        }
    }
    ranges
}

/// Why `TRAINABLE` or `LOCAL_LAYERS` cannot be used with a model.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{setting}={pattern}: {reason}")]
pub struct PartsError {
    /// Which of the two.
    pub setting: &'static str,
    /// Its value.
    pub pattern: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What `TRAINABLE` and `LOCAL_LAYERS` make of a model's flat vector. All parts consist of whole tensors and ascend.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parts {
    /// What a round trains.
    pub trained: Vec<Range<usize>>,
    /// The personal tensors: each client has its own, which never travel.
    pub local: Vec<Range<usize>>,
    /// Whose update is exactly zero: what is not trained, and what is personal.
    pub silent: Vec<Range<usize>>,
}

impl Parts {
    /// The parts of a model: `trainable` chooses what is trained (none: all), `local` what is personal (none:
    /// nothing).
    ///
    /// # Errors
    /// A pattern that finds no tensor, or patterns that leave nothing to travel.
    pub fn new(
        trainable: Option<&TensorPattern>,
        local: Option<&TensorPattern>,
        layout: &ModelLayout,
    ) -> Result<Self, PartsError> {
        let ranges = |setting, pattern: Option<&TensorPattern>| {
            pattern
                .map(|pattern| pattern.ranges(layout).map_err(|reason| refusal(setting, pattern, reason)))
                .transpose()
        };
        let trained = ranges(TRAINABLE, trainable)?
            .unwrap_or_else(|| std::iter::once(0..layout.parameters()).collect());
        let parts_of_local = ranges(LOCAL_LAYERS, local)?.unwrap_or_default();
        let is_local = |tensor: &TensorLayout| local.is_some_and(|local| local.chooses(tensor));
        let is_silent = |tensor: &TensorLayout| {
            is_local(tensor) || trainable.is_some_and(|trainable| !trainable.chooses(tensor))
        };
        if let Some(local) = local
            && layout.tensors().iter().all(is_silent)
        {
            let reason = match trainable {
                Some(trainable) => {
                    format!("with TRAINABLE={trainable} no tensor is left that is trained and travels")
                }
                None => "it finds every tensor, nothing would travel: leave some out".to_owned(),
            };
            return Err(refusal(LOCAL_LAYERS, local, reason));
        }
        Ok(Self { trained, local: parts_of_local, silent: ranges_of(layout, is_silent) })
    }
}

fn refusal(setting: &'static str, pattern: &TensorPattern, reason: String) -> PartsError {
    PartsError { setting, pattern: pattern.to_string(), reason }
}

impl FromStr for TensorPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > MAX_BYTES {
            return Err(format!("give a regular expression of 1 to {MAX_BYTES} bytes"));
        }
        let compiled = RegexBuilder::new(text).size_limit(MAX_COMPILED_BYTES).build();
        compiled.map(Self).map_err(|error| format!("it is not a regular expression: {error}"))
    }
}

impl fmt::Display for TensorPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl PartialEq for TensorPattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

/// The parts of `0..len` that are not in `ranges`, which are ascending and apart.
pub fn complement(ranges: &[Range<usize>], len: usize) -> Vec<Range<usize>> {
    let mut rest = Vec::new();
    let mut start = 0;
    for range in ranges {
        if start < range.start {
            rest.push(start..range.start);
        }
        start = range.end;
    }
    if start < len {
        rest.push(start..len);
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> ModelLayout {
        let tensors =
            [("0.weight", vec![2, 3]), ("0.bias", vec![2]), ("2.weight", vec![4, 2]), ("2.bias", vec![4])];
        ModelLayout::new(tensors.map(|(name, shape)| (name.to_owned(), shape)).to_vec())
    }

    fn ranges(pattern: &str) -> Result<Vec<Range<usize>>, String> {
        pattern.parse::<TensorPattern>().and_then(|pattern| pattern.ranges(&layout()))
    }

    #[test]
    fn neighbours_are_one_part_and_the_rest_completes_it() {
        assert_eq!(ranges(r"^2\.").unwrap(), std::iter::once(8..20).collect::<Vec<_>>());
        assert_eq!(ranges("bias").unwrap(), [6..8, 16..20]);
        assert_eq!(complement(&ranges("bias").unwrap(), 20), [0..6, 8..16]);
        assert!(complement(&ranges(".").unwrap(), 20).is_empty());
        assert_eq!(complement(&[], 3), std::iter::once(0..3).collect::<Vec<_>>());
    }

    #[test]
    fn personal_tensors_are_trained_and_do_not_travel() {
        let parts = |trainable: Option<&str>, local: Option<&str>| {
            let pattern = |text: Option<&str>| text.map(|text| text.parse::<TensorPattern>().unwrap());
            Parts::new(pattern(trainable).as_ref(), pattern(local).as_ref(), &layout())
        };
        let one = |range: Range<usize>| std::iter::once(range).collect::<Vec<_>>();
        let found = parts(None, Some(r"^2\.")).unwrap();
        assert_eq!((found.trained, found.local, found.silent), (one(0..20), one(8..20), one(8..20)));
        let found = parts(Some("weight"), Some(r"^2\.")).unwrap();
        assert_eq!((found.trained, found.silent), (vec![0..6, 8..16], one(6..20)));
        assert!(parts(None, None).unwrap().silent.is_empty());
        let refused = |trainable, local| parts(trainable, local).unwrap_err().to_string();
        assert_eq!(
            refused(None, Some(".")),
            "LOCAL_LAYERS=.: it finds every tensor, nothing would travel: leave some out"
        );
        assert_eq!(
            refused(Some("bias"), Some("bias")),
            "LOCAL_LAYERS=bias: with TRAINABLE=bias no tensor is left that is trained and travels"
        );
        assert!(refused(None, Some("head")).starts_with("LOCAL_LAYERS=head: no tensor has such a name"));
        assert!(refused(Some("head"), None).starts_with("TRAINABLE=head: no tensor has such a name"));
    }

    #[test]
    fn what_chooses_nothing_or_is_no_pattern_is_refused_in_a_sentence() {
        assert_eq!(
            ranges("head").unwrap_err(),
            "no tensor has such a name, there are 0.weight, 0.bias, 2.weight, 2.bias"
        );
        assert!(ranges("(").unwrap_err().starts_with("it is not a regular expression"));
        assert!(ranges("").is_err());
        assert!(ranges(&"a".repeat(1001)).is_err());
        assert!(ranges("(((a{100}){100}){100}){100}").is_err(), "its compiled form has a limit");
    }
}
