//! Names of workers.

use crate::limits::MAX_WORKER_ID_BYTES;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr, sync::Arc};

/// The name of a worker: 1 to 64 of `A-Z a-z 0-9 . _ -`, so that it is safe in a file name, a log
/// line, a metric label and a query string. Clones share the text, since a master keeps each name in several places.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkerId(Arc<str>);

impl WorkerId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for WorkerId {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if s.is_empty() || s.len() > MAX_WORKER_ID_BYTES || !s.bytes().all(allowed) {
            return Err(format!(
                "a worker id is 1 to {MAX_WORKER_ID_BYTES} of the characters A-Z a-z 0-9 . _ -"
            ));
        }
        Ok(Self(s.into()))
    }
}

impl TryFrom<String> for WorkerId {
    type Error = String;

    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl From<WorkerId> for String {
    fn from(id: WorkerId) -> Self {
        id.0.as_ref().to_owned()
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_node_names_and_refuses_the_rest() {
        for good in ["edge-1", "node.example.com", "W_7", &"a".repeat(64)] {
            assert!(good.parse::<WorkerId>().is_ok(), "{good}");
        }
        for bad in ["", "a b", "a/b", "a\n", "é", "\"", &"a".repeat(65)] {
            assert!(bad.parse::<WorkerId>().is_err(), "{bad}");
        }
    }
}
