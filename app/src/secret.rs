//! Values that no log line may show.

use crate::SettingError;
use std::fmt;

/// A secret text. Its `Debug` hides the value, and it has no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl Secret {
    /// Checks that the value can stand in an `Authorization` header.
    ///
    /// # Errors
    /// If it is empty or holds anything but printable ASCII without spaces; the message does not show it.
    pub fn check_token(&self, name: &'static str) -> Result<(), SettingError> {
        if self.0.is_empty() || !self.0.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(SettingError::new(name, "(secret)", "use printable ASCII without spaces"));
        }
        Ok(())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_print() {
        assert_eq!(format!("{:?}", Some(Secret("hunter2".into()))), "Some((secret))");
    }

    #[test]
    fn a_refused_token_is_not_shown() {
        assert_eq!(Secret("s3cret!".into()).check_token("FL_TOKEN"), Ok(()));
        for bad in ["", "two words", "tab\t", "gr\u{fc}n"] {
            let error = Secret(bad.into()).check_token("FL_TOKEN").unwrap_err();
            assert_eq!(error.to_string(), "FL_TOKEN=(secret): use printable ASCII without spaces");
        }
    }
}
