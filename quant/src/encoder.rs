//! Encodes the tensors of an update to one stream each.

use crate::{
    EncodeError, Scheme, Spec, Target,
    entropy::IntegerCoder,
    fixed_width::{Encoding, Tensor, TensorBuffers},
    limits::{MAX_BITS, MAX_ELEMENTS},
    schemes::max_abs,
    simd::vectorized,
    split::{Split, count_of, units},
    stream::{Stream, StreamPart, parts_of},
    threads::Threads,
    uniform,
};
use std::cmp::Reverse;

/// Largest magnitudes that the schemes can quantize: squares must neither overflow nor underflow f32. A
/// tensor outside is written as plain f32.
const QUANTIZABLE: std::ops::Range<f32> = 1e-15..1e15;

/// Shortest segment that [`Encoder::with_segments`] takes.
const MIN_SEGMENTS: usize = 4096;

/// Threads and buffers that encoding reuses from update to update.
///
/// The buffers of a thread grow to some 9 bytes for each element of the longest segment (see
/// [`Self::with_segments`]), those of the trellis to 4 bytes and those of a fixed width to 1 byte for each
/// element of the update and of its largest tensor.
#[derive(Debug)]
pub struct Encoder {
    threads: Threads,
    split: Split,
    /// Largest magnitude of each tensor.
    largest: Vec<f32>,
    /// For large tensors, which are encoded one after the other.
    buffers: TensorBuffers,
    /// One for each thread, for tensors that a thread encodes by itself.
    tensors: Vec<TensorBuffers>,
    /// One for each thread.
    coders: Vec<IntegerCoder>,
    search: uniform::StepSearch,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new(Threads::one())
    }
}

impl Encoder {
    /// An encoder that works on `threads`. Streams do not depend on their number.
    pub fn new(threads: Threads) -> Self {
        let mut tensors = Vec::new();
        tensors.resize_with(threads.count(), TensorBuffers::default);
        let mut coders = Vec::new();
        coders.resize_with(threads.count(), IntegerCoder::default);
        Self {
            threads,
            split: Split::default(),
            largest: Vec::new(),
            buffers: TensorBuffers::default(),
            tensors,
            coders,
            search: uniform::StepSearch::default(),
        }
    }

    /// Cuts tensors of at least `elements` elements into segments of about as many, which are entropy-coded
    /// by themselves: 2^20 by default, at least 4096. Each costs bytes, because its statistics begin anew.
    #[must_use]
    pub fn with_segments(mut self, elements: usize) -> Self {
        self.split = Split { large: elements.max(MIN_SEGMENTS) };
        self
    }

    /// The threads that it works on.
    pub fn threads(&self) -> &Threads {
        &self.threads
    }
}

/// Encodes a whole update: `x` holds the values of all tensors, `shapes` their shapes in the same order.
///
/// Prefer this to [`crate::compress`] for a model's tensors: MSQ_v2 with the entropy stage then finds one
/// step for all of them, and targets hold for the whole update. `outs` is resized to one stream per tensor.
/// Its buffers and the encoder's are reused: once they have grown, encoding allocates a few words for each
/// tensor. The streams depend on `x`, `shapes`, `spec` and the encoder's segments alone.
///
/// # Errors
/// If a value is not finite, if `x` and `shapes` differ in length, if a tensor has more than 2^28 elements,
/// or if the width is not 1 to 8.
///
/// ```
/// use fl_quant::{Encoder, Spec, Stream, encode_update};
///
/// // A layer of 2 outputs and 3 inputs, and its bias.
/// let (delta, shapes) = ([0.1, -0.2, 0.3, 0.0, 0.2, -0.1, 0.05, 0.0], [vec![2, 3], vec![2]]);
/// let (mut encoder, mut streams) = (Encoder::default(), Vec::new());
/// encode_update(&mut encoder, &delta, &shapes, &Spec::default(), &mut streams)?;
///
/// let mut sum = [0.0; 8];
/// for (bytes, (start, len)) in streams.iter().zip([(0, 6), (6, 2)]) {
///     let stream = Stream::parse(bytes, len).expect("written above");
///     stream.for_each_chunk(|offset, values| {
///         for (sum, value) in sum[start + offset..].iter_mut().zip(values) {
///             *sum += value;
///         }
///     });
/// }
/// # Ok::<(), fl_quant::EncodeError>(())
/// ```
pub fn encode_update(
    encoder: &mut Encoder,
    x: &[f32],
    shapes: &[Vec<usize>],
    spec: &Spec,
    outs: &mut Vec<Vec<u8>>,
) -> Result<(), EncodeError> {
    let largest = encoder.check(x, shapes, spec)?;
    outs.resize_with(shapes.len(), Vec::new);
    let goal = match (spec.scheme, spec.target) {
        _ if largest != 0.0 && !QUANTIZABLE.contains(&largest) => None,
        (Scheme::MsqV2, Target::Nmse(nmse)) => Some(uniform::Goal::Nmse(nmse)),
        (Scheme::MsqV2, Target::Bytes(bytes)) => Some(uniform::Goal::Bytes(bytes)),
        (Scheme::MsqV2, Target::Width) if spec.entropy => Some(uniform::Goal::Nmse(spec.width_nmse())),
        _ => None,
    };
    match (goal, spec.target) {
        (Some(goal), _) => {
            let params = uniform::UniformParams { bits: spec.bits, rdo: spec.rdo, goal, largest };
            let Encoder { threads, split, search, coders, .. } = encoder;
            let update = uniform::UniformUpdate::new(x, shapes, *split, threads);
            search.encode(&update, &params, coders, outs);
        }
        (None, Target::Width) => encoder.encode_width(x, shapes, spec, outs),
        (None, _) => encoder.encode_narrowest(x, shapes, spec, outs),
    }
    Ok(())
}

impl Encoder {
    /// Checks values, shapes and width. Returns the largest magnitude; `self.largest` receives that of each
    /// tensor.
    fn check(&mut self, x: &[f32], shapes: &[Vec<usize>], spec: &Spec) -> Result<f32, EncodeError> {
        if !(1..=MAX_BITS).contains(&spec.bits) {
            return Err(EncodeError::Bits { scheme: spec.scheme.name(), bits: spec.bits });
        }
        let mut total = 0usize;
        for shape in shapes {
            let count = shape.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim));
            match count.filter(|count| *count <= MAX_ELEMENTS) {
                Some(count) => total = total.saturating_add(count),
                None => return Err(EncodeError::TooLarge { max: MAX_ELEMENTS }),
            }
        }
        if total != x.len() {
            return Err(EncodeError::Shape { shape: total, found: x.len() });
        }
        // One fast pass finds out whether a value is not finite; which one is needed for the message alone.
        let spans = units(shapes, |_, count| self.split.span(count));
        let mut of_spans = vec![0.0; spans.len()];
        self.threads.each(spans.iter().zip(&mut of_spans), |(unit, largest)| {
            *largest = vectorized(
                #[inline(always)]
                || max_abs(&x[unit.range.clone()]),
            );
        });
        // The bits of the magnitudes order infinities and NaN above all finite ones.
        let largest = max_abs(&of_spans);
        if !largest.is_finite() {
            let position = x.iter().position(|v| !v.is_finite()).unwrap_or(0);
            return Err(EncodeError::NonFinite(position));
        }
        self.largest.clear();
        self.largest.resize(shapes.len(), 0.0);
        for (unit, largest) in spans.iter().zip(of_spans) {
            self.largest[unit.tensor] = self.largest[unit.tensor].max(largest);
        }
        Ok(largest)
    }

    /// Encodes every tensor at `spec.bits`.
    fn encode_width(&mut self, x: &[f32], shapes: &[Vec<usize>], spec: &Spec, outs: &mut [Vec<u8>]) {
        let Self { threads, split, largest, buffers, tensors, coders, .. } = self;
        let encode = |encoding: &Encoding<'_>,
                      tensor: &Tensor<'_>,
                      buffers: &mut TensorBuffers,
                      coders: &mut [IntegerCoder],
                      out: &mut Vec<u8>| {
            match spec.scheme {
                Scheme::None | Scheme::F16 => encoding.encode_plain(spec.scheme, tensor.values, out),
                _ if tensor.max_abs != 0.0 && !QUANTIZABLE.contains(&tensor.max_abs) => {
                    encoding.encode_plain(Scheme::None, tensor.values, out);
                }
                _ => encoding.encode(tensor, buffers, coders, out),
            }
        };
        let mut small = Vec::with_capacity(shapes.len());
        let mut rest = x;
        for (index, ((shape, max_abs), out)) in shapes.iter().zip(&*largest).zip(outs).enumerate() {
            let (values, tail) = rest.split_at(count_of(shape));
            rest = tail;
            let tensor = Tensor { values, shape, index, max_abs: *max_abs };
            if split.is_large(values.len()) {
                let encoding = Encoding { spec, split: *split, threads };
                encode(&encoding, &tensor, buffers, coders, out);
            } else {
                small.push((tensor, out));
            }
        }
        // The longest first, so that no thread begins one when the others are done.
        small.sort_by_key(|(tensor, _)| Reverse(tensor.values.len()));
        let encoding = Encoding { spec, split: *split, threads: &Threads::one() };
        let mut scratch: Vec<_> = tensors.iter_mut().zip(coders).collect();
        threads.run(&mut scratch, small.into_iter(), |(buffers, coder), (tensor, out)| {
            encode(&encoding, &tensor, buffers, std::slice::from_mut(*coder), out);
        });
    }

    /// Finds the narrowest width that reaches the target error, or the widest within the target size.
    fn encode_narrowest(&mut self, x: &[f32], shapes: &[Vec<usize>], spec: &Spec, outs: &mut [Vec<u8>]) {
        let (mut low, mut high) = (1, MAX_BITS);
        while low < high {
            // Bisection. The side that keeps `bits` (`low` for a size, `high` for an error) decides how the
            // middle is rounded, or the interval would not shrink.
            let bits = if matches!(spec.target, Target::Bytes(_)) {
                (low + high).div_ceil(2)
            } else {
                (low + high) / 2
            };
            self.encode_width(x, shapes, &Spec { bits, ..*spec }, outs);
            match spec.target {
                Target::Bytes(bytes) if outs.iter().map(Vec::len).sum::<usize>() <= bytes => low = bits,
                Target::Bytes(_) => high = bits - 1,
                Target::Nmse(nmse) if self.relative_error(x, shapes, outs) <= nmse => high = bits,
                Target::Nmse(_) | Target::Width => low = bits + 1,
            }
        }
        self.encode_width(x, shapes, &Spec { bits: low, ..*spec }, outs);
    }

    /// Normalised squared error `|decode(x) - x|^2 / |x|^2`; 0 if x is zero.
    fn relative_error(&self, x: &[f32], shapes: &[Vec<usize>], outs: &[Vec<u8>]) -> f64 {
        let mut streams = Vec::with_capacity(outs.len());
        for (shape, out) in shapes.iter().zip(outs) {
            // Parsing cannot fail: this encoder wrote the stream.
            let Ok(stream) = Stream::parse(out, count_of(shape)) else { return f64::INFINITY };
            streams.push(stream);
        }
        let parts = parts_of(&streams);
        let add = |(error, energy): &mut (f64, f64), part: &StreamPart<'_>| {
            part.decode(&mut |offset, values| {
                for (v, x) in values.iter().zip(&x[offset..]) {
                    let lost = f64::from(*v) - f64::from(*x);
                    *error += lost * lost;
                    *energy += f64::from(*x) * f64::from(*x);
                }
            });
        };
        let mut total = (0.0, 0.0);
        if self.split.is_large(x.len()) {
            let mut sums = vec![(0.0, 0.0); parts.len()];
            self.threads.each(parts.iter().zip(&mut sums), |(part, sums)| add(sums, part));
            sums.iter().for_each(|part| total = (total.0 + part.0, total.1 + part.1));
        } else {
            parts.iter().for_each(|part| add(&mut total, part));
        }
        let (error, energy) = total;
        if energy > 0.0 { error / energy } else { 0.0 }
    }
}
