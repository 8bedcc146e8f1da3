//! `Range: bytes=...` of one part, and entity tags (RFC 9110, sections 13 and 14).

use std::ops::Range;

/// What a `Range` header asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::http) enum Asked {
    /// The whole body: no range, or a form that a server may ignore.
    Whole,
    /// These bytes.
    Part(Range<usize>),
    /// A range outside of the body.
    Unsatisfiable,
}

/// Reads a `Range` header for a body of `len` bytes.
pub(in crate::http) fn parse(header: &str, len: usize) -> Asked {
    let Some(spec) = header.trim().strip_prefix("bytes=") else { return Asked::Whole };
    let Some((first, last)) = spec.split_once('-') else { return Asked::Whole };
    let (first, last) = (first.trim(), last.trim());
    if first.is_empty() {
        // The last n bytes.
        return match last.parse::<usize>() {
            Ok(0) => Asked::Unsatisfiable,
            Ok(n) => Asked::Part(len.saturating_sub(n)..len),
            Err(_) => Asked::Whole,
        };
    }
    let Ok(first) = first.parse::<usize>() else { return Asked::Whole };
    let last = match last {
        "" => usize::MAX,
        text => match text.parse::<usize>() {
            Ok(last) if last >= first => last,
            _ => return Asked::Whole,
        },
    };
    match first < len {
        true => Asked::Part(first..last.saturating_add(1).min(len)),
        false => Asked::Unsatisfiable,
    }
}

/// Whether an `If-None-Match` header names the tag.
pub(in crate::http) fn names(header: &str, etag: &str) -> bool {
    header.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        assert_eq!(parse("bytes=0-9", 100), Asked::Part(0..10));
        assert_eq!(parse("bytes=90-", 100), Asked::Part(90..100));
        assert_eq!(parse("bytes=90-900", 100), Asked::Part(90..100));
        assert_eq!(parse("bytes=-10", 100), Asked::Part(90..100));
        assert_eq!(parse("bytes=-1000", 100), Asked::Part(0..100));
        assert_eq!(parse("bytes=100-", 100), Asked::Unsatisfiable);
        assert_eq!(parse("bytes=-0", 100), Asked::Unsatisfiable);
        for ignored in
            ["", "items=0-1", "bytes=5-1", "bytes=a-b", "bytes=0-1,4-5", "bytes=-99999999999999999999"]
        {
            assert_eq!(parse(ignored, 100), Asked::Whole, "{ignored}");
        }
    }

    #[test]
    fn tags() {
        assert!(names("\"a\"", "\"a\""));
        assert!(names("\"b\", W/\"a\"", "\"a\""));
        assert!(names("*", "\"a\""));
        assert!(!names("\"ab\"", "\"a\""));
    }
}
