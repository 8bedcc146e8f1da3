use super::*;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};

fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..len).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect()
}

/// Calls `f(x, y, weight)` with the places of every product of the convolution.
fn each_product(g: &Geometry, batch: usize, mut f: impl FnMut(usize, usize, usize)) {
    let [out_height, out_width] = g.output().unwrap();
    let (inputs, outputs) = (g.inputs / g.groups, g.outputs / g.groups);
    for n in 0..batch {
        for (oy, ox) in (0..out_height).flat_map(|oy| (0..out_width).map(move |ox| (oy, ox))) {
            for (ky, kx) in (0..g.kernel[0]).flat_map(|ky| (0..g.kernel[1]).map(move |kx| (ky, kx))) {
                let y = (oy * g.stride[0] + ky * g.dilation[0]).wrapping_sub(g.padding[0]);
                let x = (ox * g.stride[1] + kx * g.dilation[1]).wrapping_sub(g.padding[1]);
                if y >= g.height || x >= g.width {
                    continue;
                }
                for o in 0..g.outputs {
                    for i in 0..inputs {
                        f(
                            ((n * g.height + y) * g.width + x) * g.inputs + o / outputs * inputs + i,
                            ((n * out_height + oy) * out_width + ox) * g.outputs + o,
                            ((o * inputs + i) * g.kernel[0] + ky) * g.kernel[1] + kx,
                        );
                    }
                }
            }
        }
    }
}

fn assert_close(name: &str, got: &[f32], expected: &[f64]) {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let error = norm(&mut got.iter().zip(expected).map(|(a, b)| f64::from(*a) - b));
    let size = norm(&mut expected.iter().copied());
    assert!(error <= 1e-5 * size + 1e-12, "{name}: error {error:e} of {size:e}");
}

struct Outcome {
    y: Vec<f32>,
    dx: Vec<f32>,
    dweight: Vec<f32>,
    dbias: Vec<f32>,
}

fn run(g: Geometry, winograd: bool, batch: usize, relu: bool, threads: usize) -> Outcome {
    let [height, width] = g.output().unwrap();
    let (x_len, y_len) = (batch * g.height * g.width * g.inputs, batch * height * width * g.outputs);
    let (x, dy, weights) = (noise(x_len, 1), noise(y_len, 2), noise(g.weights_len(), 3));
    let bias = noise(g.outputs, 4);
    let stale = f32::NAN;
    let (mut y, mut dx) = (vec![stale; y_len], vec![stale; x_len]);
    let (mut dweight, mut dbias) = (vec![stale; weights.len()], vec![stale; g.outputs]);
    let threads = Threads::new(threads).unwrap();
    threads.enter(|| {
        let (mut conv, mut scratch) = (Conv::with(g, winograd).unwrap(), Scratch::default());
        conv.pack(&weights, true, &threads);
        conv.forward(&x, Some(&bias), relu, &mut y, &mut scratch, &threads);
        conv.backward_weights(&x, &dy, &mut dweight, Some(&mut dbias), &mut scratch, &threads);
        conv.backward_input(&dy, &mut dx, &mut scratch, &threads);
    });
    Outcome { y, dx, dweight, dbias }
}

/// Every way that computes `g`.
fn check(g: Geometry, batch: usize, relu: bool) {
    check_one(g, false, batch, relu);
    if Winograd::applies(&g) {
        check_one(g, true, batch, relu);
    }
}

fn check_one(g: Geometry, winograd: bool, batch: usize, relu: bool) {
    let got = run(g, winograd, batch, relu, 1);
    let (x, dy, weights) = (noise(got.dx.len(), 1), noise(got.y.len(), 2), noise(g.weights_len(), 3));
    let bias = noise(g.outputs, 4);
    let mut y: Vec<f64> = (0..got.y.len()).map(|at| f64::from(bias[at % g.outputs])).collect();
    let (mut dx, mut dweight) = (vec![0.0; x.len()], vec![0.0; weights.len()]);
    each_product(&g, batch, |at_x, at_y, at_w| {
        y[at_y] += f64::from(x[at_x]) * f64::from(weights[at_w]);
        dx[at_x] += f64::from(dy[at_y]) * f64::from(weights[at_w]);
        dweight[at_w] += f64::from(dy[at_y]) * f64::from(x[at_x]);
    });
    if relu {
        y.iter_mut().for_each(|value| *value = value.max(0.0));
    }
    let mut dbias = vec![0.0; g.outputs];
    for (at, value) in dy.iter().enumerate() {
        dbias[at % g.outputs] += f64::from(*value);
    }
    assert_close("y", &got.y, &y);
    assert_close("dx", &got.dx, &dx);
    assert_close("dweight", &got.dweight, &dweight);
    assert_close("dbias", &got.dbias, &dbias);
    let threaded = run(g, winograd, batch, relu, 3);
    let pairs = [
        (&got.y, &threaded.y),
        (&got.dx, &threaded.dx),
        (&got.dweight, &threaded.dweight),
        (&got.dbias, &threaded.dbias),
    ];
    for (one, three) in pairs {
        assert!(one.iter().zip(three).all(|(a, b)| a.to_bits() == b.to_bits()), "threads change the result");
    }
}

pub(super) fn square(size: usize, inputs: usize, outputs: usize, kernel: usize) -> Geometry {
    Geometry {
        height: size,
        width: size,
        inputs,
        outputs,
        kernel: [kernel; 2],
        stride: [1; 2],
        padding: [kernel / 2; 2],
        dilation: [1; 2],
        groups: 1,
    }
}

fn geometries() -> impl Strategy<Value = Geometry> {
    let pair = |range: std::ops::Range<usize>| [range.clone(), range];
    let channels = prop_oneof![1usize..5, Just(16), Just(17), Just(33)];
    let shapes = (pair(1..12), channels.clone(), channels, 1usize..4, pair(1..6));
    (shapes, pair(1..4), pair(0..4), pair(1..3)).prop_filter_map(
        "the kernel does not fit",
        |((size, inputs, outputs, groups, kernel), stride, padding, dilation)| {
            let g = Geometry {
                height: size[0],
                width: size[1],
                inputs: inputs * groups,
                outputs: outputs * groups,
                kernel,
                stride,
                padding,
                dilation,
                groups,
            };
            g.output().map(|_| g)
        },
    )
}

#[test]
fn usual_layers_agree_with_the_reference() {
    check(square(9, 3, 64, 3), 5, true);
    check(square(8, 64, 80, 3), 3, false);
    check(square(4, 128, 130, 3), 3, true);
    check(square(2, 70, 96, 3), 17, false);
    check(square(14, 32, 64, 5), 2, false);
    check(square(16, 16, 16, 3), 20, true);
    check(square(1, 16, 16, 3), 4, false);
    check(square(6, 80, 120, 1), 2, false);
    check(Geometry { stride: [2, 2], padding: [3, 3], ..square(15, 3, 24, 7) }, 4, true);
    check(Geometry { stride: [2, 2], ..square(9, 24, 40, 3) }, 3, false);
    check(Geometry { stride: [2, 2], ..square(8, 16, 32, 1) }, 3, false);
    check(Geometry { dilation: [2, 2], padding: [2, 2], ..square(9, 20, 36, 3) }, 3, false);
    check(Geometry { groups: 4, ..square(7, 24, 32, 3) }, 3, false);
    check(Geometry { height: 1, kernel: [1, 5], padding: [0, 2], ..square(50, 12, 20, 1) }, 3, false);
    check(Geometry { kernel: [3, 1], padding: [1, 0], ..square(8, 17, 31, 1) }, 3, false);
}

#[test]
fn tiles_of_large_batches_agree_with_the_reference() {
    check(square(8, 16, 16, 3), 150, true);
    check(square(13, 20, 70, 3), 40, false);
    check(Geometry { padding: [0, 2], ..square(7, 66, 33, 3) }, 66, true);
}

#[test]
fn impossible_shapes_are_refused() {
    assert!(Conv::new(Geometry { padding: [0, 0], ..square(2, 3, 4, 5) }).is_none());
    assert!(Conv::new(Geometry { groups: 2, ..square(8, 3, 4, 3) }).is_none());
    assert!(Conv::new(Geometry { groups: 0, ..square(8, 3, 4, 3) }).is_none());
    assert!(Conv::new(Geometry { stride: [0, 1], ..square(8, 3, 4, 3) }).is_none());
    assert!(Conv::new(Geometry { kernel: [0, 1], ..square(8, 3, 4, 3) }).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_winograd_agrees_with_the_reference(
        size in [1usize..20, 1..20], channels in [1usize..40, 1..80], padding in [0usize..3, 0..3],
        batch in 1usize..9, relu: bool,
    ) {
        let [height, width] = size;
        let g = Geometry { height, width, padding, ..square(1, channels[0], channels[1], 3) };
        if g.output().is_some() {
            check(g, batch, relu);
        }
    }

    #[test]
    fn any_geometry_agrees_with_the_reference(g in geometries(), batch in 1usize..6, relu: bool) {
        check(g, batch, relu);
    }
}
