//! Which inputs the windows of convolutions and poolings see.

/// Kernel, stride, padding and dilation along one axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Axis {
    pub(crate) input: usize,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) padding: usize,
    pub(crate) dilation: usize,
}

impl Axis {
    /// Number of windows.
    pub(crate) fn output(self) -> usize {
        (self.input + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) / self.stride + 1
    }

    /// The taps `(k, input)` of window `o` that are not in the padding.
    pub(crate) fn taps(self, o: usize) -> impl Iterator<Item = (usize, usize)> {
        (0..self.kernel).filter_map(move |k| {
            let at = (o * self.stride + k * self.dilation).checked_sub(self.padding)?;
            (at < self.input).then_some((k, at))
        })
    }

    /// The windows `(k, output)` that see input `i`, by the tap `k`.
    pub(crate) fn windows(self, i: usize) -> impl Iterator<Item = (usize, usize)> {
        let outputs = self.output();
        (0..self.kernel).filter_map(move |k| {
            let at = (i + self.padding).checked_sub(k * self.dilation)?;
            (at % self.stride == 0 && at / self.stride < outputs).then_some((k, at / self.stride))
        })
    }
}

/// Positions `first, first + step, ...` that have the same taps, each at inputs `input_step` further on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) first: usize,
    pub(crate) count: usize,
    /// `(k, input of the first position)`
    pub(crate) taps: Vec<(usize, usize)>,
}

/// Cuts `positions` into runs.
pub(crate) fn runs(
    positions: usize,
    step: usize,
    input_step: usize,
    taps: impl Fn(usize) -> Vec<(usize, usize)>,
) -> Vec<Run> {
    let mut out: Vec<Run> = Vec::new();
    for start in 0..step {
        let from = out.len();
        for at in (start..positions).step_by(step) {
            let taps = taps(at);
            let goes_on = |run: &Run| {
                run.taps.len() == taps.len()
                    && run
                        .taps
                        .iter()
                        .zip(&taps)
                        .all(|(a, b)| a.0 == b.0 && a.1 + run.count * input_step == b.1)
            };
            match out[from..].last_mut() {
                Some(run) if goes_on(run) => run.count += 1,
                _ => out.push(Run { first: at, count: 1, taps }),
            }
        }
    }
    out
}
