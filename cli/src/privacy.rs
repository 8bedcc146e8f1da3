//! `fl privacy`: plans the noise, the rounds or the epsilon of a training with differential privacy.

use crate::output;
use clap::{Args, Subcommand, ValueEnum};
use fl_app::SettingError;
use fl_privacy::{
    MAX_ROUNDS, Mechanism, PrivacyError, Rounds,
    plan::{Accountant, least_noise, most_rounds},
    pld, rdp,
};
use serde::Serialize;

/// What `fl privacy` computes.
#[derive(Debug, Subcommand)]
pub enum Privacy {
    /// Epsilon of a training: what its models reveal about one client at most.
    ///
    /// Both results are upper bounds for the same quantity. `epsilon_pld` follows the whole distribution of the privacy
    /// loss and is the tighter one; `epsilon_rdp` follows Renyi divergences and is what most papers report.
    #[command(after_long_help = "Example: each of 6000 rounds draws a client with probability 0.0025.\n  \
        fl privacy epsilon --noise-multiplier 1.3 --sampling-rate 0.0025 --rounds 6000 --delta 1e-5")]
    Epsilon(EpsilonArgs),
    /// The least noise multiplier with which a training stays within an epsilon.
    ///
    /// It is printed with the epsilon of both accountants.
    #[command(after_long_help = "Example: 1000 rounds of a hundredth of the clients.\n  \
        fl privacy noise --epsilon 2 --sampling-rate 0.01 --rounds 1000 --delta 1e-5")]
    Noise(NoiseArgs),
    /// The most rounds that an epsilon allows.
    ///
    /// They are printed with the epsilon of both accountants.
    #[command(after_long_help = "Example: rounds of a hundredth of the clients.\n  \
        fl privacy rounds --epsilon 2 --noise-multiplier 1 --sampling-rate 0.01 --delta 1e-5")]
    Rounds(RoundsArgs),
}

/// What all rounds have in common.
#[derive(Debug, Args)]
pub struct Common {
    /// Probability that one client takes part in a round, each independently of the others (Poisson sampling): clients
    /// of a round divided by all clients. 1 if all take part in every round.
    #[arg(long, value_name = "Q")]
    sampling_rate: f64,

    /// Probability with which epsilon may fail to hold. Typical: below 1 divided by the number of clients, 1e-5 to 1e-8.
    #[arg(long, default_value = "1e-5")]
    delta: f64,
}

/// Arguments of `fl privacy epsilon`.
#[derive(Debug, Args)]
pub struct EpsilonArgs {
    /// Standard deviation of the noise on the sum of a round's updates, in units of the L2 norm to which each update
    /// is clipped. Typical: 0.5 to 2 with many clients.
    #[arg(long, value_name = "SIGMA")]
    noise_multiplier: f64,

    /// Rounds of the training.
    #[arg(long)]
    rounds: u64,

    #[command(flatten)]
    common: Common,
}

/// Arguments of `fl privacy noise`.
#[derive(Debug, Args)]
pub struct NoiseArgs {
    /// The budget. With epsilon 1, an observer's odds that a client took part change by a factor of at most e = 2.7;
    /// above 10 little is promised.
    #[arg(long)]
    epsilon: f64,

    /// Rounds of the training.
    #[arg(long)]
    rounds: u64,

    #[command(flatten)]
    common: Common,

    /// How epsilon is computed.
    #[arg(long, value_enum, default_value_t = By::Pld)]
    accountant: By,
}

/// Arguments of `fl privacy rounds`.
#[derive(Debug, Args)]
pub struct RoundsArgs {
    /// The budget. With epsilon 1, an observer's odds that a client took part change by a factor of at most e = 2.7;
    /// above 10 little is promised.
    #[arg(long)]
    epsilon: f64,

    /// Standard deviation of the noise on the sum of a round's updates, in units of the L2 norm to which each update
    /// is clipped.
    #[arg(long, value_name = "SIGMA")]
    noise_multiplier: f64,

    #[command(flatten)]
    common: Common,

    /// How epsilon is computed.
    #[arg(long, value_enum, default_value_t = By::Pld)]
    accountant: By,
}

/// The accountant of a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// Privacy loss distribution: tight, seconds.
    Pld,
    /// Renyi differential privacy: what most papers report.
    Rdp,
}

impl From<By> for Accountant {
    fn from(by: By) -> Self {
        match by {
            By::Pld => Self::Pld,
            By::Rdp => Self::Rdp,
        }
    }
}

/// A training and what it costs, by both accountants.
#[derive(Debug, Serialize)]
struct Account {
    noise_multiplier: f64,
    sampling_rate: f64,
    rounds: u64,
    delta: f64,
    epsilon_rdp: f64,
    /// The Renyi order that gave `epsilon_rdp`.
    order_rdp: f64,
    epsilon_pld: f64,
}

/// Runs `fl privacy`.
pub fn run(privacy: &Privacy, json: bool) -> anyhow::Result<()> {
    let account = match privacy {
        Privacy::Epsilon(args) => account(args.noise_multiplier, args.rounds, &args.common)?,
        Privacy::Noise(args) => {
            positive_rounds(args.rounds)?;
            mechanism(1.0, &args.common)?;
            let Common { sampling_rate, delta } = args.common;
            budget(args.epsilon)?;
            let sigma = least_noise(args.accountant.into(), args.epsilon, sampling_rate, args.rounds, delta)
                .map_err(|error| refused("--epsilon", args.epsilon, &error))?;
            account(sigma, args.rounds, &args.common)?
        }
        Privacy::Rounds(args) => {
            let mechanism = mechanism(args.noise_multiplier, &args.common)?;
            budget(args.epsilon)?;
            let rounds =
                most_rounds(args.accountant.into(), args.epsilon, &mechanism, &[], args.common.delta)
                    .map_err(|error| refused("--epsilon", args.epsilon, &error))?;
            account(args.noise_multiplier, rounds.unwrap_or(MAX_ROUNDS), &args.common)?
        }
    };
    if json {
        return output::json_line(&account);
    }
    let Account { noise_multiplier, sampling_rate, rounds, delta, epsilon_rdp, order_rdp, epsilon_pld } =
        account;
    match privacy {
        Privacy::Epsilon(_) => {}
        Privacy::Noise(_) => println!("noise multiplier {noise_multiplier:.6}"),
        Privacy::Rounds(_) if rounds == MAX_ROUNDS => println!("{rounds} rounds or more"),
        Privacy::Rounds(_) => println!("{rounds} rounds"),
    }
    println!(
        "epsilon {epsilon_pld:.4} (PLD)   {epsilon_rdp:.4} (RDP, order {order_rdp})   at delta {delta:e}\n\
         for {rounds} rounds with noise multiplier {noise_multiplier:.6} and sampling rate {sampling_rate}"
    );
    Ok(())
}

fn account(noise_multiplier: f64, rounds: u64, common: &Common) -> anyhow::Result<Account> {
    let mechanism = mechanism(noise_multiplier, common)?;
    let group = Rounds::new(mechanism, rounds).map_err(|error| refused("--rounds", rounds, &error))?;
    let delta = common.delta;
    let by_rdp = rdp::epsilon(&[group], delta)?;
    Ok(Account {
        noise_multiplier,
        sampling_rate: common.sampling_rate,
        rounds,
        delta,
        epsilon_rdp: by_rdp.epsilon,
        order_rdp: by_rdp.order,
        epsilon_pld: pld::epsilon(&[group], delta)?,
    })
}

/// Checks noise, rate and delta, and names the flag that is bad.
fn mechanism(noise_multiplier: f64, common: &Common) -> Result<Mechanism, SettingError> {
    let Common { sampling_rate, delta } = *common;
    Mechanism::new(1.0, sampling_rate).map_err(|error| refused("--sampling-rate", sampling_rate, &error))?;
    rdp::epsilon(&[], delta).map_err(|error| refused("--delta", delta, &error))?;
    Mechanism::new(noise_multiplier, sampling_rate)
        .map_err(|error| refused("--noise-multiplier", noise_multiplier, &error))
}

fn positive_rounds(rounds: u64) -> Result<(), SettingError> {
    if rounds == 0 { Err(SettingError::new("--rounds", rounds, "give at least 1")) } else { Ok(()) }
}

fn budget(epsilon: f64) -> Result<(), SettingError> {
    let good = (1e-6..=1e6).contains(&epsilon);
    if good {
        Ok(())
    } else {
        Err(SettingError::new("--epsilon", epsilon, "give a number from 1e-6 to 1000000"))
    }
}

fn refused(name: &'static str, value: impl std::fmt::Display, error: &PrivacyError) -> SettingError {
    let reason = match error {
        PrivacyError::OutOfRange { allowed, .. } => format!("give {allowed}"),
        other => other.to_string(),
    };
    SettingError::new(name, value, reason)
}
