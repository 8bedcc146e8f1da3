//! Differential privacy of federated rounds: what a training with noise reveals, as (epsilon, delta).
//!
//! One round is a *mechanism*: clients are drawn with probability `q` each (Poisson sampling), every update is
//! clipped to an L2 norm, and Gaussian noise of `noise_multiplier` times that norm is added to the sum. Neighbouring
//! data differ by one client, who is added or removed.
//!
//! ```
//! use fl_privacy::{Mechanism, Rounds, pld, rdp};
//!
//! let rounds = [Rounds::new(Mechanism::new(1.3, 0.0025)?, 6000)?];
//! let by_rdp = rdp::epsilon(&rounds, 1e-5)?;
//! let by_pld = pld::epsilon(&rounds, 1e-5)?;
//! assert!((by_rdp.epsilon - 0.7242).abs() < 1e-4 && by_rdp.order == 19.0);
//! assert!((by_pld - 0.6400).abs() < 1e-4);
//! # Ok::<(), fl_privacy::PrivacyError>(())
//! ```
//!
//! - [`rdp`]: Renyi differential privacy, the bound most papers report;
//! - [`pld`]: privacy loss distributions, composed by FFT; tighter;
//! - [`plan`]: least noise or most rounds for a budget;
//! - [`Ledger`]: the rounds charged so far, and their epsilon.
//!
//! All results are upper bounds, up to the rounding of f64.

mod accountant;
mod error;

pub use accountant::{
    Ledger, MAX_ROUNDS, MAX_SIGMA, MIN_DELTA, MIN_RATE, MIN_SIGMA, Mechanism, Rounds, plan, pld, rdp,
};
pub use error::PrivacyError;
