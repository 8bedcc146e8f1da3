//! Hostile clients: they train like the others and send a manipulated update.

use fl_protocol::{ModelLayout, Update, UpdateError, update, update::Encoded};
use fl_quant::{Encoder, Spec, encode_update};
use std::{fmt, str::FromStr};

/// How hostile clients change their updates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Attack {
    /// `sign_flip:COUNT`: the negated update.
    SignFlip {
        /// How many clients.
        count: usize,
    },
    /// `scale:COUNT:FACTOR`: a multiple of the update.
    Scale {
        /// How many clients.
        count: usize,
        /// The factor.
        factor: f32,
    },
}

impl fmt::Display for Attack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SignFlip { count } => write!(f, "sign_flip:{count}"),
            Self::Scale { count, factor } => write!(f, "scale:{count}:{factor}"),
        }
    }
}

impl FromStr for Attack {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let count = |text: &str| text.parse::<usize>().ok().filter(|count| *count > 0);
        let factor = |text: &str| text.parse::<f32>().ok().filter(|factor| factor.is_finite());
        let known = match parts[..] {
            ["sign_flip", n] => count(n).map(|count| Self::SignFlip { count }),
            ["scale", n] => count(n).map(|count| Self::Scale { count, factor: 100.0 }),
            ["scale", n, by] => count(n).zip(factor(by)).map(|(count, factor)| Self::Scale { count, factor }),
            _ => None,
        };
        known.ok_or_else(|| format!("`{text}` is no attack: use sign_flip:COUNT or scale:COUNT:FACTOR"))
    }
}

/// The factor that client `index` multiplies its updates with: attackers are the first clients, in the
/// order of the attacks.
pub fn factor_of(attacks: &[Attack], index: usize) -> Option<f32> {
    let mut first = 0;
    for attack in attacks {
        let (count, factor) = match *attack {
            Attack::SignFlip { count } => (count, -1.0),
            Attack::Scale { count, factor } => (count, factor),
        };
        if index < first + count {
            return Some(factor);
        }
        first += count;
    }
    None
}

/// The container with every value of the update multiplied by `factor`, encoded like the original.
///
/// # Errors
/// If `body` is no container of this model.
pub fn tamper(
    body: &[u8],
    layout: &ModelLayout,
    encoding: &Spec,
    factor: f32,
) -> Result<Vec<u8>, UpdateError> {
    let parsed = Update::parse(body, layout)?;
    let scaled = |flat: Vec<f32>| flat.into_iter().map(|value| value * factor).collect::<Vec<f32>>();
    let mut vectors = vec![scaled(parsed.to_flat())];
    if !parsed.control.is_empty() {
        let mut control = vec![0.0; layout.parameters()];
        parsed.for_each_control_chunk(|at, values| control[at..at + values.len()].copy_from_slice(values));
        vectors.push(scaled(control));
    }
    let mut streams = Vec::new();
    for vector in &vectors {
        let mut part = Vec::new();
        encode_update(&mut Encoder::default(), vector, &layout.shapes(), encoding, &mut part)
            .map_err(|error| UpdateError::NonFinite(error.to_string()))?;
        streams.extend(part);
    }
    let tensors: Vec<_> = streams.iter().map(|stream| Encoded::Stream(stream)).collect();
    update::write(&parsed.meta, layout, &tensors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fl_protocol::UpdateMeta;
    use fl_quant::Scheme;

    #[test]
    fn attackers_are_the_first_clients_in_order() {
        let attacks = ["sign_flip:1", "scale:2:100"].map(|text| text.parse::<Attack>().unwrap());
        let factors: Vec<_> = (0..4).map(|i| factor_of(&attacks, i)).collect();
        assert_eq!(factors, [Some(-1.0), Some(100.0), Some(100.0), None]);
        assert!("scale:0:2".parse::<Attack>().is_err() && "noise:1".parse::<Attack>().is_err());
    }

    #[test]
    fn a_tampered_update_is_the_multiple() {
        let layout = ModelLayout::new([("w".to_owned(), vec![4])]);
        let meta = UpdateMeta {
            worker_id: "w".parse().unwrap(),
            round: 3,
            num_samples: 5,
            loss: Some(0.5),
            accuracy: None,
            compute_factor: None,
            local_steps: Some(2),
            local_norm: None,
            reuse: None,
            metrics: Default::default(),
        };
        let body = update::write(&meta, &layout, &[Encoded::F32(&[1.0, -2.0, 0.0, 0.5])]).unwrap();
        let body = tamper(&body, &layout, &Spec::new(Scheme::None, 8), -1.0).unwrap();
        let parsed = Update::parse(&body, &layout).unwrap();
        assert_eq!((parsed.to_flat(), parsed.meta), (vec![-1.0, 2.0, 0.0, -0.5], meta));
    }
}
