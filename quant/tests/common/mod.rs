//! What several tests need.

use fl_quant::{Scheme, Spec};

/// Every scheme and width, packed and entropy-coded, and the trellis.
pub fn specs() -> Vec<Spec> {
    let widths = |scheme| (1..=8).map(move |bits| Spec::new(scheme, bits));
    let fixed: Vec<Spec> = [Scheme::StocQ, Scheme::MsqV2, Scheme::Sdq, Scheme::BetaQ]
        .into_iter()
        .flat_map(widths)
        .chain([Scheme::Bin, Scheme::Laq8, Scheme::F16, Scheme::None].map(|scheme| Spec::new(scheme, 8)))
        .collect();
    let entropy = fixed.iter().map(|spec| Spec { entropy: true, ..*spec });
    let trellis = (1..=8).map(|bits| Spec { entropy: true, rdo: true, ..Spec::new(Scheme::MsqV2, bits) });
    fixed.iter().copied().chain(entropy).chain(trellis).collect()
}
