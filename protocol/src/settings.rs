//! What the settings of master and worker have in common: how a value is refused.

use std::fmt;
use thiserror::Error;

/// A setting whose value is refused. The program ends with code 64 before it does anything.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("{name}={value}: {reason}")]
pub struct SettingError {
    /// Name of the setting, as the environment spells it.
    pub name: &'static str,
    /// The value that was given.
    pub value: String,
    /// What is allowed.
    pub reason: String,
}

impl SettingError {
    /// Refuses `value` for a reason that says what to give instead.
    pub fn new(name: &'static str, value: impl fmt::Display, reason: impl Into<String>) -> Self {
        Self { name, value: value.to_string(), reason: reason.into() }
    }
}

/// A value that no log line may show: its `Debug` hides it, and it has no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

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

/// An empty environment variable counts as none: a ConfigMap cannot leave a key out.
pub fn filled(value: Option<String>) -> Option<String> {
    value.filter(|text| !text.is_empty())
}

/// Reads a setting that has a type of its own.
///
/// # Errors
/// What the type says about the text.
pub fn parse<T>(name: &'static str, text: &str) -> Result<T, SettingError>
where
    T: std::str::FromStr,
    T::Err: ToString,
{
    text.parse().map_err(|error: T::Err| SettingError::new(name, text, error.to_string()))
}

/// Checks the range of a whole number, both ends included.
///
/// # Errors
/// If it lies outside.
pub fn whole(name: &'static str, value: u64, min: u64, max: u64) -> Result<(), SettingError> {
    match (min..=max).contains(&value) {
        true => Ok(()),
        false => Err(SettingError::new(name, value, format!("use a whole number from {min} to {max}"))),
    }
}

/// Checks the range of a number, both ends included. NaN lies in no range.
///
/// # Errors
/// If it lies outside.
pub fn number<T: PartialOrd + fmt::Display>(
    name: &'static str,
    value: T,
    min: T,
    max: T,
) -> Result<(), SettingError> {
    match value >= min && value <= max {
        true => Ok(()),
        false => Err(SettingError::new(name, value, format!("use a number from {min} to {max}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_print() {
        assert_eq!(format!("{:?}", Some(Secret("hunter2".into()))), "Some((secret))");
    }
}
