//! How a bad setting is refused, and the checks that most settings need.

use fl_datasets::DatasetSpec;
use std::{fmt, str::FromStr};
use thiserror::Error;

/// A setting whose value is refused. The program ends with [`Exit::Usage`](crate::Exit::Usage) before it
/// does anything.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("{name}={value}: {reason}")]
pub struct SettingError {
    /// Name of the setting as the user wrote it: the environment variable, or the flag with its dashes.
    pub name: &'static str,
    /// The value that was given.
    pub value: String,
    /// What is allowed.
    pub reason: String,
}

impl SettingError {
    /// Refuses `value`; `reason` says what to give instead.
    pub fn new(name: &'static str, value: impl fmt::Display, reason: impl Into<String>) -> Self {
        Self { name, value: value.to_string(), reason: reason.into() }
    }
}

/// Drops an empty value: a ConfigMap or a Compose file cannot leave a variable out, only empty.
pub fn filled(value: Option<String>) -> Option<String> {
    value.filter(|text| !text.is_empty())
}

/// Parses a setting whose type is not clap's.
///
/// # Errors
/// The error of the type's `FromStr`.
pub fn parse<T>(name: &'static str, text: &str) -> Result<T, SettingError>
where
    T: FromStr,
    T::Err: ToString,
{
    text.parse().map_err(|error: T::Err| SettingError::new(name, text, error.to_string()))
}

/// Parses `DATASET`, and adds the columns of `TARGET` to a table.
///
/// # Errors
/// The sentence of whichever of both is bad.
pub fn dataset(text: &str, target: Option<String>) -> Result<DatasetSpec, SettingError> {
    let spec: DatasetSpec = parse("DATASET", text)?;
    match filled(target) {
        Some(target) => {
            spec.with_target(&target).map_err(|reason| SettingError::new("TARGET", target, reason))
        }
        None => Ok(spec),
    }
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
    fn a_message_names_the_setting_its_value_and_what_is_allowed() {
        let error = whole("KEEP_ROUNDS", 0, 1, 10).unwrap_err();
        assert_eq!(error.to_string(), "KEEP_ROUNDS=0: use a whole number from 1 to 10");
        assert_eq!(number("LR", 0.5, 0.0, 0.5), Ok(()));
        assert!(number("LR", f64::NAN, 0.0, 0.5).is_err());
        let error = parse::<u8>("BITS", "300").unwrap_err();
        assert_eq!((error.name, error.value.as_str()), ("BITS", "300"));
    }

    #[test]
    fn an_empty_value_counts_as_not_set() {
        assert_eq!(filled(Some(String::new())), None);
        assert_eq!(filled(Some("x".into())).as_deref(), Some("x"));
    }
}
