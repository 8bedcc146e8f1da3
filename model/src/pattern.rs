//! Tensors chosen by name.

use fl_protocol::ModelLayout;
use regex_lite::{Regex, RegexBuilder};
use std::{fmt, ops::Range, str::FromStr};

/// Longest pattern, in bytes.
const MAX_BYTES: usize = 1000;
/// Most memory of a compiled pattern, in bytes.
const MAX_COMPILED_BYTES: usize = 1 << 20;
/// Names that a refusal lists.
const LISTED: usize = 20;

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
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for tensor in layout.tensors().iter().filter(|tensor| self.0.is_match(&tensor.name)) {
            let end = tensor.offset + tensor.len;
            match ranges.last_mut() {
                Some(last) if last.end == tensor.offset => last.end = end,
                _ => ranges.push(tensor.offset..end),
            }
        }
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
