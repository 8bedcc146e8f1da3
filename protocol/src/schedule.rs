//! Learning rates that change from round to round.

use std::{f64::consts::PI, fmt, str::FromStr};

/// The learning rate of a round, from the setting `LR`: `lr * factor(round)`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum LrSchedule {
    /// `constant`: the same in every round.
    #[default]
    Constant,
    /// `exp:F`: times `F` from round to round.
    Exponential(f64),
    /// `step:N:F`: times `F` every `N` rounds.
    Step(u64, f64),
    /// `cosine:N`: half a cosine from 1 to 0 over `N` rounds with a floor of 1 %, so that a run
    /// which is longer than planned still trains (Loshchilov and Hutter 2017, eq. 5, without restarts).
    Cosine(u64),
    /// `warmup:N`: in equal steps from `1/N` to 1 over `N` rounds.
    WarmUp(u64),
}

/// The smallest factor of [`LrSchedule::Cosine`].
const COSINE_FLOOR: f64 = 0.01;

impl LrSchedule {
    /// The factor for a round, counted from 0. Positive unless it underflows.
    pub fn factor(self, round: u64) -> f64 {
        match self {
            Self::Constant => 1.0,
            Self::Exponential(factor) => factor.powf(round as f64),
            Self::Step(every, factor) => factor.powf((round / every) as f64),
            Self::Cosine(rounds) => {
                let share = (round as f64 / rounds as f64).min(1.0);
                (0.5 * (1.0 + (PI * share).cos())).max(COSINE_FLOOR)
            }
            Self::WarmUp(rounds) => ((round + 1) as f64 / rounds as f64).min(1.0),
        }
    }

    /// The learning rate of a round; the smallest positive f32 where it would underflow.
    pub fn at(self, lr: f32, round: u64) -> f32 {
        match self {
            Self::Constant => lr,
            _ => ((f64::from(lr) * self.factor(round)) as f32).max(f32::MIN_POSITIVE),
        }
    }
}

impl fmt::Display for LrSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant => f.write_str("constant"),
            Self::Exponential(factor) => write!(f, "exp:{factor}"),
            Self::Step(every, factor) => write!(f, "step:{every}:{factor}"),
            Self::Cosine(rounds) => write!(f, "cosine:{rounds}"),
            Self::WarmUp(rounds) => write!(f, "warmup:{rounds}"),
        }
    }
}

impl FromStr for LrSchedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let rounds =
            |text: &str| text.parse::<u64>().ok().filter(|rounds| (1..=1_000_000_000).contains(rounds));
        let factor = |text: &str| text.parse::<f64>().ok().filter(|factor| *factor > 0.0 && *factor <= 1.0);
        let known = match parts[..] {
            ["constant"] => Some(Self::Constant),
            ["exp", f] => factor(f).map(Self::Exponential),
            ["step", n, f] => rounds(n).zip(factor(f)).map(|(n, f)| Self::Step(n, f)),
            ["cosine", n] => rounds(n).map(Self::Cosine),
            ["warmup", n] => rounds(n).map(Self::WarmUp),
            _ => None,
        };
        known.ok_or_else(|| {
            "use constant, exp:F, step:N:F, cosine:N or warmup:N with N rounds and a factor F above 0, at most 1"
                .to_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str, round: u64) -> f64 {
        text.parse::<LrSchedule>().unwrap().factor(round)
    }

    #[test]
    fn factors_are_those_of_the_formulas() {
        assert_eq!(at("constant", 99), 1.0);
        assert_eq!(at("exp:0.5", 3), 0.125);
        assert_eq!([at("step:10:0.5", 9), at("step:10:0.5", 10), at("step:10:0.5", 20)], [1.0, 0.5, 0.25]);
        assert_eq!([at("cosine:10", 0), at("cosine:10", 10), at("cosine:10", 50)], [1.0, 0.01, 0.01]);
        assert!((at("cosine:10", 5) - 0.5).abs() < 1e-12);
        assert_eq!([at("warmup:4", 0), at("warmup:4", 3), at("warmup:4", 9)], [0.25, 1.0, 1.0]);
        assert_eq!(LrSchedule::Constant.at(0.05, 7), 0.05);
        assert!("exp:0.1".parse::<LrSchedule>().unwrap().at(0.1, 1_000_000) > 0.0);
    }

    #[test]
    fn names_read_back_and_nonsense_does_not() {
        for name in ["constant", "exp:0.99", "step:5:0.1", "cosine:200", "warmup:3"] {
            assert_eq!(name.parse::<LrSchedule>().unwrap().to_string(), name);
        }
        for bad in
            ["", "cosine", "cosine:0", "exp:0", "exp:1.5", "exp:nan", "step:5", "step:0:0.5", "linear:3"]
        {
            assert!(bad.parse::<LrSchedule>().is_err(), "{bad}");
        }
    }
}
