use super::{super::vector::tests::*, *};

/// Where the statistics of a value are: an index below `sets`.
type SetOf<'a> = &'a dyn Fn(usize, usize) -> usize;

pub(super) struct Reference {
    y: Vec<f64>,
    dx: Vec<f64>,
    d_weight: Vec<f64>,
    d_bias: Vec<f64>,
}

/// Normalisation in f64; `set_of(row, channel)` says which values share moments.
pub(super) fn reference(
    x: &[f32],
    dy: &[f32],
    settings: Settings<'_>,
    sets: usize,
    set_of: SetOf<'_>,
) -> Reference {
    let channels = settings.weight.len();
    let (mut n, mut mean, mut var) = (vec![0.0; sets], vec![0.0; sets], vec![0.0; sets]);
    let each = |f: &mut dyn FnMut(usize, usize, usize)| {
        (0..x.len()).for_each(|i| f(i, i % channels, set_of(i / channels, i % channels)));
    };
    each(&mut |i, _, s| {
        n[s] += 1.0;
        mean[s] += f64::from(x[i]);
    });
    (0..sets).for_each(|s| mean[s] /= n[s]);
    each(&mut |i, _, s| var[s] += (f64::from(x[i]) - mean[s]).powi(2) / n[s]);
    let normed = |i: usize, s: usize| (f64::from(x[i]) - mean[s]) / (var[s] + settings.eps).sqrt();
    let mut out = Reference {
        y: vec![0.0; x.len()],
        dx: vec![0.0; x.len()],
        d_weight: vec![0.0; channels],
        d_bias: vec![0.0; channels],
    };
    let (mut inner, mut inner_normed) = (vec![0.0; sets], vec![0.0; sets]);
    let mut masked = vec![0.0; x.len()];
    each(&mut |i, c, s| {
        let y = normed(i, s) * f64::from(settings.weight[c]) + f64::from(settings.bias[c]);
        out.y[i] = if settings.relu { y.max(0.0) } else { y };
        masked[i] = if settings.relu && y <= 0.0 { 0.0 } else { f64::from(dy[i]) };
        out.d_weight[c] += masked[i] * normed(i, s);
        out.d_bias[c] += masked[i];
        inner[s] += masked[i] * f64::from(settings.weight[c]) / n[s];
        inner_normed[s] += masked[i] * f64::from(settings.weight[c]) * normed(i, s) / n[s];
    });
    each(&mut |i, c, s| {
        let centred = masked[i] * f64::from(settings.weight[c]) - inner[s] - normed(i, s) * inner_normed[s];
        out.dx[i] = centred / (var[s] + settings.eps).sqrt();
    });
    out
}

struct Case {
    x: Vec<f32>,
    dy: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Case {
    fn new(rows: usize, channels: usize, offset: f32) -> Self {
        let x = noise(rows * channels, 1).iter().map(|v| 2.0 * v + offset).collect();
        let weight = noise(channels, 3).iter().map(|v| v + 1.5).collect();
        Self { x, dy: noise(rows * channels, 2), weight, bias: noise(channels, 4) }
    }

    fn settings(&self, relu: bool) -> Settings<'_> {
        Settings { weight: &self.weight, bias: &self.bias, eps: 1e-5, relu }
    }
}

/// What an implementation under test gives.
struct Got {
    y: Vec<f32>,
    dx: Vec<f32>,
    d_weight: Vec<f32>,
    d_bias: Vec<f32>,
}

impl Got {
    fn new(case: &Case) -> Self {
        let zeros = |like: &[f32]| vec![9.0; like.len()];
        Self {
            y: zeros(&case.x),
            dx: zeros(&case.x),
            d_weight: zeros(&case.weight),
            d_bias: zeros(&case.bias),
        }
    }

    fn check(&self, expected: &Reference, what: &str) {
        assert_close(&self.y, &expected.y, 1e-5, &format!("{what}: y"));
        assert_close(&self.dx, &expected.dx, 1e-5, &format!("{what}: dx"));
        assert_close(&self.d_weight, &expected.d_weight, 1e-5, &format!("{what}: d_weight"));
        assert_close(&self.d_bias, &expected.d_bias, 1e-5, &format!("{what}: d_bias"));
    }

    fn check_bits(&self, other: &Self, what: &str) {
        assert_same_bits(&self.y, &other.y, what);
        assert_same_bits(&self.dx, &other.dx, what);
        assert_same_bits(&self.d_weight, &other.d_weight, what);
        assert_same_bits(&self.d_bias, &other.d_bias, what);
    }
}

fn group(case: &Case, norm: GroupNorm, relu: bool, in_place: bool, threads: &Threads) -> Got {
    let mut got = Got::new(case);
    let (mut saved, mut partial) = (Saved::default(), Partial::default());
    threads.enter(|| {
        norm.forward(&case.x, case.settings(relu), &mut got.y, &mut saved, threads);
        let dy = if in_place { None } else { Some(&case.dy[..]) };
        got.dx.copy_from_slice(&case.dy);
        let gradients = (&mut got.d_weight[..], &mut got.d_bias[..]);
        norm.backward(
            &case.x,
            case.settings(relu),
            &saved,
            dy,
            &mut got.dx,
            gradients,
            &mut partial,
            threads,
        );
    });
    got
}

#[test]
fn group_norm_is_that_of_f64_and_the_same_on_any_threads() {
    let two = Threads::new(2).unwrap();
    let shapes = [
        (3, 1024, 16, 8),
        (2, 256, 24, 8),
        (2, 35, 40, 4),
        (2, 64, 80, 1),
        (3, 9, 120, 120),
        (5, 1, 12, 3),
        (2, 17, 63, 7),
        (2, 1, 3, 1),
        (40, 50, 10, 5),
    ];
    for (batch, pixels, channels, groups) in shapes {
        for relu in [false, true] {
            // A mean of many standard deviations: sums of squares around zero would fail.
            for offset in [0.3, 100.0] {
                let case = Case::new(batch * pixels, channels, offset);
                let norm = GroupNorm { pixels, channels, groups };
                let what = format!("{norm:?} {relu} {offset}");
                let got = group(&case, norm, relu, false, &two);
                got.check_bits(&group(&case, norm, relu, true, &Threads::none()), &what);
                if offset > 1.0 {
                    // The rounding of x itself shows here; y is only compared roughly.
                    continue;
                }
                let width = channels / groups;
                let expected =
                    reference(&case.x, &case.dy, case.settings(relu), batch * groups, &|row, c| {
                        row / pixels * groups + c / width
                    });
                got.check(&expected, &what);
            }
        }
    }
}

#[test]
fn a_large_mean_does_not_spoil_the_variance() {
    let (pixels, channels) = (1024, 16);
    let case = Case::new(pixels, channels, 1000.0);
    let norm = GroupNorm { pixels, channels, groups: 4 };
    let got = group(&case, norm, false, false, &Threads::none());
    let expected = reference(&case.x, &case.dy, case.settings(false), 4, &|_, c| c / 4);
    assert_close(&got.y, &expected.y, 1e-4, "y");
    assert_close(&got.dx, &expected.dx, 1e-4, "dx");
}

fn batch(case: &Case, relu: bool, in_place: bool, running: &mut [Vec<f32>; 2], threads: &Threads) -> Got {
    let mut got = Got::new(case);
    let (mut saved, mut partial) = (Saved::default(), Partial::default());
    threads.enter(|| {
        let [mean, var] = running;
        let running = Running { mean, var, momentum: 0.1 };
        batch_forward(&case.x, case.settings(relu), running, &mut got.y, &mut saved, threads);
        let dy = if in_place { None } else { Some(&case.dy[..]) };
        got.dx.copy_from_slice(&case.dy);
        let gradients = (&mut got.d_weight[..], &mut got.d_bias[..]);
        batch_backward(
            &case.x,
            case.settings(relu),
            &saved,
            dy,
            &mut got.dx,
            gradients,
            &mut partial,
            threads,
        );
    });
    got
}

#[test]
fn batch_norm_is_that_of_f64_and_moves_its_running_moments() {
    let two = Threads::new(2).unwrap();
    for (rows, channels) in [(2, 1), (64, 16), (3000, 24), (777, 63), (40_000, 3), (5, 130)] {
        for relu in [false, true] {
            let case = Case::new(rows, channels, 0.5);
            let what = format!("{rows} x {channels}, {relu}");
            let mut running = [vec![0.25; channels], vec![1.5; channels]];
            let mut again = running.clone();
            let got = batch(&case, relu, false, &mut running, &two);
            got.check_bits(&batch(&case, relu, true, &mut again, &Threads::none()), &what);
            let expected = reference(&case.x, &case.dy, case.settings(relu), channels, &|_, c| c);
            if rows > 2 {
                got.check(&expected, &what);
            } else {
                assert_close(&got.y, &expected.y, 1e-5, &what);
            }
            for c in 0..channels {
                let values = || case.x.iter().skip(c).step_by(channels).map(|v| f64::from(*v));
                let mean = values().sum::<f64>() / rows as f64;
                let var = values().map(|v| (v - mean).powi(2)).sum::<f64>() / (rows - 1) as f64;
                assert!((f64::from(running[0][c]) - (0.9 * 0.25 + 0.1 * mean)).abs() < 1e-6, "{what}");
                assert!((f64::from(running[1][c]) - (0.9 * 1.5 + 0.1 * var)).abs() < 1e-6, "{what}");
            }
        }
    }
}

#[test]
fn evaluation_uses_the_running_moments_and_bears_a_negative_variance() {
    let case = Case::new(50, 3, 0.0);
    let (mean, var) = ([0.5, -0.5, 0.0], [4.0, -1.0, 0.25]);
    let mut y = vec![0.0; case.x.len()];
    batch_evaluate(&case.x, case.settings(false), (&mean, &var), &mut y, &Threads::none());
    let expected: Vec<f64> = (0..case.x.len())
        .map(|i| {
            let c = i % 3;
            let scale = (f64::from(var[c].max(0.0)) + 1e-5).sqrt();
            f64::from(case.x[i] - mean[c]) / scale * f64::from(case.weight[c]) + f64::from(case.bias[c])
        })
        .collect();
    assert_close(&y, &expected, 1e-6, "evaluation");
}

#[test]
fn layer_norm_is_that_of_f64_and_the_same_on_any_threads() {
    use super::super::layer_norm;
    let two = Threads::new(2).unwrap();
    for (rows, features) in [(1, 3), (2048, 128), (37, 63), (300, 17), (5, 1000), (64, 16)] {
        for relu in [false, true] {
            let case = Case::new(rows, features, 0.5);
            let what = format!("{rows} x {features}, {relu}");
            let run = |in_place: bool, threads: &Threads| {
                let mut got = Got::new(&case);
                let (mut saved, mut partial) = (Saved::default(), Vec::new());
                threads.enter(|| {
                    layer_norm::forward(&case.x, case.settings(relu), &mut got.y, &mut saved, threads);
                    let dy = if in_place { None } else { Some(&case.dy[..]) };
                    got.dx.copy_from_slice(&case.dy);
                    let parts = (&mut got.d_weight[..], &mut got.d_bias[..]);
                    let settings = case.settings(relu);
                    layer_norm::backward(
                        &case.x,
                        settings,
                        &saved,
                        dy,
                        &mut got.dx,
                        parts,
                        &mut partial,
                        threads,
                    );
                });
                got
            };
            let got = run(false, &two);
            got.check_bits(&run(true, &Threads::none()), &what);
            let expected = reference(&case.x, &case.dy, case.settings(relu), rows, &|row, _| row);
            got.check(&expected, &what);
        }
    }
}
