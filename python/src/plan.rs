//! How an update is encoded: from the client's own arguments, otherwise the task's, otherwise defaults. The rules are
//! those of the Rust worker (`worker/src/plan.rs`).

use crate::value_error;
use fl_quant::{Bits, FeedbackRule, Scheme, Spec, Target};
use pyo3::prelude::*;

const DEFAULT_BITS: u8 = 4;

/// Values of `TARGET_NMSE`.
const NMSE: std::ops::RangeInclusive<f64> = 1e-9..=0.9;

/// The encoding of one round.
#[pyclass(frozen, module = "fl_client._native")]
#[derive(Debug)]
pub(crate) struct Plan {
    /// The seed is set for each round. A target in bytes is that of the whole container.
    pub(crate) spec: Spec,
    pub(crate) rule: FeedbackRule,
    /// Lazy upload: squared change of the update up to which a notice may stand for it.
    pub(crate) lazy_below: Option<f32>,
}

#[pymethods]
impl Plan {
    /// Arguments that begin with `task_` are the master's proposals. `bits` is 1 to 8 or "auto", `error_feedback` true,
    /// false or none for "where it is worth its bytes".
    #[new]
    #[pyo3(signature = (*, quantizer=None, bits=None, entropy=true, rdo=false, error_feedback=None, target_nmse=0.0095,
        update_bytes=None, task_quantizer=None, task_bits=None, task_target_nmse=None, task_update_bytes=None,
        lazy_below=None))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments in Python")]
    fn new(
        quantizer: Option<&str>,
        bits: Option<&str>,
        entropy: bool,
        rdo: bool,
        error_feedback: Option<bool>,
        target_nmse: f64,
        update_bytes: Option<usize>,
        task_quantizer: Option<&str>,
        task_bits: Option<u8>,
        task_target_nmse: Option<f64>,
        task_update_bytes: Option<usize>,
        lazy_below: Option<f32>,
    ) -> PyResult<Self> {
        let scheme = match quantizer.or(task_quantizer) {
            Some(name) => name.parse().map_err(value_error)?,
            None => Scheme::MsqV2,
        };
        let bits: Option<Bits> = bits.map(str::parse).transpose().map_err(value_error)?;
        if update_bytes.is_some() && bits != Some(Bits::Auto) {
            return Err(value_error("update_bytes needs bits=\"auto\""));
        }
        let nmse = |value: f64| match NMSE.contains(&value) {
            true => Ok(Target::Nmse(value)),
            false => Err(value_error(format!("target_nmse is {value}: use 1e-9 to 0.9"))),
        };
        let (bits, target) = match (bits, task_update_bytes, task_target_nmse, task_bits) {
            (Some(Bits::Auto), ..) => {
                (8, update_bytes.map_or_else(|| nmse(target_nmse), |n| Ok(Target::Bytes(n)))?)
            }
            (Some(Bits::Width(bits)), ..) | (None, None, None, Some(bits)) => (bits, Target::Width),
            (None, Some(bytes), ..) => (8, Target::Bytes(bytes)),
            (None, None, Some(value), _) => (8, nmse(value)?),
            (None, None, None, None) => (DEFAULT_BITS, Target::Width),
        };
        if !(1..=8).contains(&bits) {
            return Err(value_error(format!("the task asks for {bits} bits, 1 to 8 are possible")));
        }
        let spec = Spec { entropy, rdo, target, ..Spec::new(scheme, bits) };
        Ok(Self { spec, rule: feedback(error_feedback, &spec, lazy_below.is_some()), lazy_below })
    }

    /// Name of the quantizer.
    #[getter]
    fn quantizer(&self) -> &'static str {
        self.spec.scheme.name()
    }

    /// Bits per code.
    #[getter]
    fn bits(&self) -> u8 {
        self.spec.bits
    }

    /// What is added to the next update: "nothing", "silenced" or "everything".
    #[getter]
    fn feedback(&self) -> &'static str {
        match self.rule {
            FeedbackRule::Nothing => "nothing",
            FeedbackRule::SilencedTensors => "silenced",
            FeedbackRule::Everything => "everything",
        }
    }

    fn __repr__(&self) -> String {
        format!("Plan({:?}, feedback={})", self.spec, self.feedback())
    }
}

fn feedback(own: Option<bool>, spec: &Spec, is_lazy: bool) -> FeedbackRule {
    // Unbiased errors average out over rounds and clients; carried on, they would only add to the next one.
    let is_unbiased = spec.scheme == Scheme::StocQ;
    match own {
        Some(true) => FeedbackRule::Everything,
        _ if is_unbiased => FeedbackRule::Nothing,
        // Changes that are held back accumulate in the residual until they are worth an upload.
        _ if is_lazy => FeedbackRule::Everything,
        Some(false) => FeedbackRule::Nothing,
        None if spec.feedback_pays() => FeedbackRule::Everything,
        None => FeedbackRule::SilencedTensors,
    }
}
