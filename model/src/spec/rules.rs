//! What each layer takes and gives: the shape of one sample after it, or a sentence that says what does not fit.

use super::{Layer, Pair, limits};

pub(super) fn in_range(what: &str, value: usize, low: usize, high: usize) -> Result<(), String> {
    match (low..=high).contains(&value) {
        true => Ok(()),
        false => Err(format!("{what} is {value}: it must be {low} to {high}")),
    }
}

fn image(input: &[usize], what: &str) -> Result<[usize; 3], String> {
    <[usize; 3]>::try_from(input)
        .map_err(|_| format!("{what} needs [channels, height, width], but gets {input:?}"))
}

fn sequence(input: &[usize], what: &str) -> Result<[usize; 2], String> {
    <[usize; 2]>::try_from(input).map_err(|_| format!("{what} needs [length, channels], but gets {input:?}"))
}

fn windows(size: usize, kernel: usize, padding: usize, stride: usize) -> Result<usize, String> {
    (size + 2 * padding)
        .checked_sub(kernel)
        .map(|rest| rest / stride + 1)
        .ok_or_else(|| format!("its window of {kernel} is larger than the image, {size} + 2 x {padding}"))
}

/// One dimension of a convolution or pooling.
struct Window {
    kernel: usize,
    padding: usize,
    stride: usize,
    dilation: usize,
}

impl Window {
    fn output(&self, size: usize) -> Result<usize, String> {
        let Self { kernel, padding, stride, dilation } = *self;
        in_range("kernel", kernel, 1, limits::MAX_KERNEL)?;
        in_range("stride", stride, 1, limits::MAX_KERNEL)?;
        in_range("dilation", dilation, 1, limits::MAX_KERNEL)?;
        in_range("padding", padding, 0, limits::MAX_KERNEL)?;
        windows(size, dilation * (kernel - 1) + 1, padding, stride)
    }

    /// A convolution's padding stays below its kernel: no window lies outside of the image as a whole.
    fn convolution(&self, size: usize) -> Result<usize, String> {
        in_range("kernel", self.kernel, 1, limits::MAX_KERNEL)?;
        in_range("dilation", self.dilation, 1, limits::MAX_KERNEL)?;
        in_range("padding", self.padding, 0, self.dilation * (self.kernel - 1))?;
        self.output(size)
    }

    fn pooling(&self, size: usize) -> Result<usize, String> {
        in_range("padding", self.padding, 0, self.kernel / 2)?;
        self.output(size)
    }
}

fn per_axis(
    [height, width]: [usize; 2],
    (kernel, padding, stride, dilation): (Pair, Pair, Pair, Pair),
    f: impl Fn(&Window, usize) -> Result<usize, String>,
) -> Result<[usize; 2], String> {
    let axis = |k: usize, size: usize| {
        let window = Window {
            kernel: kernel.0[k],
            padding: padding.0[k],
            stride: stride.0[k],
            dilation: dilation.0[k],
        };
        f(&window, size)
    };
    Ok([axis(0, height)?, axis(1, width)?])
}

fn same_channels(what: &str, declared: usize, got: usize, name: &str) -> Result<(), String> {
    match declared == got {
        true => Ok(()),
        false => Err(format!("{what} has {declared} {name}, but gets {got}")),
    }
}

fn check_groups(what: &str, groups: usize, sizes: &[usize]) -> Result<(), String> {
    match groups > 0 && sizes.iter().all(|size| size % groups == 0) {
        true => Ok(()),
        false => Err(format!("{what}'s {groups} groups must divide its channels ({sizes:?})")),
    }
}

fn check_epsilon(eps: f64) -> Result<(), String> {
    match eps.is_finite() && eps > 0.0 {
        true => Ok(()),
        false => Err(format!("eps is {eps}: it must be above 0")),
    }
}

/// Shape after a layer that holds no others, or what is wrong with it.
pub(super) fn after(layer: &Layer, input: &[usize]) -> Result<Vec<usize>, String> {
    let one = Pair([1, 1]);
    match *layer {
        Layer::Conv2d { in_channels, out_channels, kernel, padding, stride, dilation, groups, .. } => {
            let [channels, height, width] = image(input, "conv2d")?;
            in_range("out_channels", out_channels, 1, limits::MAX_DIM)?;
            same_channels("conv2d", in_channels, channels, "in_channels")?;
            check_groups("conv2d", groups, &[in_channels, out_channels])?;
            let window = (kernel, padding, stride, dilation);
            let [height, width] = per_axis([height, width], window, Window::convolution)?;
            Ok(vec![out_channels, height, width])
        }
        Layer::Conv1d { in_channels, out_channels, kernel, padding, stride, dilation, groups, .. } => {
            let [length, channels] = sequence(input, "conv1d")?;
            in_range("out_channels", out_channels, 1, limits::MAX_DIM)?;
            same_channels("conv1d", in_channels, channels, "in_channels")?;
            check_groups("conv1d", groups, &[in_channels, out_channels])?;
            Ok(vec![Window { kernel, padding, stride, dilation }.convolution(length)?, out_channels])
        }
        Layer::Linear { in_features, out_features, .. } => {
            in_range("out_features", out_features, 1, limits::MAX_DIM)?;
            match input {
                [rest @ .., features] if rest.len() <= 1 => {
                    if *features != in_features {
                        return Err(format!(
                            "linear has {in_features} in_features, but gets {features} values"
                        ));
                    }
                    let mut shape = rest.to_vec();
                    shape.push(out_features);
                    Ok(shape)
                }
                _ => Err(format!(
                    "linear needs a vector or a sequence, but gets {input:?}: put flatten before it"
                )),
            }
        }
        Layer::BatchNorm { channels, eps, momentum } => {
            let got = if input.len() == 3 { input[0] } else { input.last().copied().unwrap_or(0) };
            same_channels("batch_norm", channels, got, "channels")?;
            check_epsilon(eps)?;
            if !(0.0..=1.0).contains(&momentum) {
                return Err(format!("batch_norm's momentum is {momentum}: it must be 0 to 1"));
            }
            Ok(input.to_vec())
        }
        Layer::GroupNorm { groups, channels, eps } => {
            let got = match input {
                [channels, _, _] | [channels] => *channels,
                _ => return Err(format!("group_norm needs an image or a vector, but gets {input:?}")),
            };
            same_channels("group_norm", channels, got, "channels")?;
            check_epsilon(eps)?;
            if groups == 0 || channels % groups != 0 {
                return Err(format!("group_norm's {groups} groups must divide its {channels} channels"));
            }
            Ok(input.to_vec())
        }
        Layer::LayerNorm { features, eps } => {
            if input.len() > 2 {
                return Err(format!("layer_norm needs a vector or a sequence, but gets {input:?}"));
            }
            same_channels("layer_norm", features, input.last().copied().unwrap_or(0), "features")?;
            check_epsilon(eps)?;
            Ok(input.to_vec())
        }
        Layer::MaxPool2d { kernel, stride, padding } | Layer::AvgPool2d { kernel, stride, padding } => {
            let [channels, height, width] = image(input, "a 2d pooling")?;
            let [height, width] = per_axis([height, width], (kernel, padding, stride, one), Window::pooling)?;
            Ok(vec![channels, height, width])
        }
        Layer::MaxPool1d { kernel, stride, padding } | Layer::AvgPool1d { kernel, stride, padding } => {
            let [length, channels] = sequence(input, "a 1d pooling")?;
            Ok(vec![Window { kernel, padding, stride, dilation: 1 }.pooling(length)?, channels])
        }
        Layer::AdaptiveAvgPool2d { size: Pair([height, width]) } => {
            let [channels, ..] = image(input, "adaptive_avg_pool2d")?;
            in_range("size", height, 1, limits::MAX_KERNEL)?;
            in_range("size", width, 1, limits::MAX_KERNEL)?;
            Ok(vec![channels, height, width])
        }
        Layer::AdaptiveAvgPool1d { size } => {
            let [_, channels] = sequence(input, "adaptive_avg_pool1d")?;
            in_range("size", size, 1, limits::MAX_KERNEL)?;
            Ok(vec![size, channels])
        }
        Layer::Dropout { p } if !(0.0..1.0).contains(&p) => {
            Err(format!("dropout's p is {p}: it must be 0 to below 1"))
        }
        Layer::LeakyRelu { negative_slope } if !negative_slope.is_finite() => {
            Err(format!("leaky_relu's negative_slope is {negative_slope}"))
        }
        Layer::Relu
        | Layer::LeakyRelu { .. }
        | Layer::Gelu { .. }
        | Layer::Silu
        | Layer::Tanh
        | Layer::Sigmoid
        | Layer::Dropout { .. } => Ok(input.to_vec()),
        Layer::Embedding { .. } => Err(format!("embedding needs tokens, but gets {input:?}")),
        Layer::PositionalEmbedding { length, dim } => {
            let [tokens, channels] = sequence(input, "positional_embedding")?;
            same_channels("positional_embedding", dim, channels, "dim")?;
            match length >= tokens {
                true => Ok(input.to_vec()),
                false => Err(format!("positional_embedding has {length} positions, the sequence {tokens}")),
            }
        }
        Layer::Lstm { input_size, hidden_size, num_layers }
        | Layer::Gru { input_size, hidden_size, num_layers } => {
            let [length, channels] = sequence(input, "a recurrent layer")?;
            same_channels("a recurrent layer", input_size, channels, "input_size")?;
            in_range("hidden_size", hidden_size, 1, limits::MAX_DIM)?;
            in_range("num_layers", num_layers, 1, limits::MAX_STACKED)?;
            Ok(vec![length, hidden_size])
        }
        Layer::Attention { dim, heads, .. } => {
            let [_, channels] = sequence(input, "attention")?;
            same_channels("attention", dim, channels, "dim")?;
            match heads > 0 && dim % heads == 0 {
                true => Ok(input.to_vec()),
                false => Err(format!("attention's {heads} heads must divide its {dim} channels")),
            }
        }
        Layer::Flatten => Ok(vec![input.iter().product()]),
        Layer::MeanTokens | Layer::LastToken => {
            let [_, channels] = sequence(input, "a layer over tokens")?;
            Ok(vec![channels])
        }
        Layer::Residual { .. } | Layer::Branches { .. } | Layer::Sequential { .. } => {
            Err("a layer of layers has no shape of its own".into())
        }
    }
}
