//! What joins, splits, copies and turns whole values: bound by memory, so each is one pass over all threads.

use super::vector::{Binary, Zip, ZipInPlace, pieces, relu};
use crate::fused::{parallel::Threads, simd, transpose::transpose};
use pulp::Simd;

/// What one value takes, in multiply-adds: for cutting work over threads.
const COST: usize = 4;

#[derive(Clone, Copy)]
struct Sum;

impl Binary for Sum {
    #[inline(always)]
    fn at<S: Simd>(self, simd: S, a: S::f32s, b: S::f32s) -> S::f32s {
        simd.add_f32s(b, a)
    }
}

#[derive(Clone, Copy)]
struct RectifiedSum;

impl Binary for RectifiedSum {
    #[inline(always)]
    fn at<S: Simd>(self, simd: S, a: S::f32s, b: S::f32s) -> S::f32s {
        relu(simd, simd.add_f32s(b, a))
    }
}

/// `y = x`.
pub(crate) fn copy(x: &[f32], y: &mut [f32], threads: &Threads) {
    pieces(threads, y, COST, |start, y| y.copy_from_slice(&x[start..][..y.len()]));
}

/// `sum = sum + x`.
pub(crate) fn add(x: &[f32], sum: &mut [f32], threads: &Threads) {
    pieces(threads, sum, COST, |start, sum| simd::run(ZipInPlace(Sum, &x[start..][..sum.len()], sum)));
}

/// `y` is the sum of all `xs`, from the first to the last; then ReLU if asked.
pub(crate) fn sum(xs: &[&[f32]], rectified: bool, y: &mut [f32], threads: &Threads) {
    let [first, second, rest @ ..] = xs else { return };
    let last = rest.len();
    pieces(threads, y, COST * (last + 1), |start, y| {
        let (a, b) = (&second[start..][..y.len()], &first[start..][..y.len()]);
        match rectified && last == 0 {
            true => simd::run(Zip(RectifiedSum, a, b, &mut *y)),
            false => simd::run(Zip(Sum, a, b, &mut *y)),
        }
        for (k, x) in rest.iter().enumerate() {
            let x = &x[start..][..y.len()];
            match rectified && k + 1 == last {
                true => simd::run(ZipInPlace(RectifiedSum, x, &mut *y)),
                false => simd::run(ZipInPlace(Sum, x, &mut *y)),
            }
        }
    });
}

/// Rows of `y` are those of all `xs` side by side; `widths` are theirs.
pub(crate) fn concat(xs: &[&[f32]], widths: &[usize], y: &mut [f32], threads: &Threads) {
    let width: usize = widths.iter().sum();
    threads.rows(y, width, COST * width, |first, y| {
        let mut at = 0;
        for (x, &own) in xs.iter().zip(widths) {
            for (y, x) in y.chunks_exact_mut(width).zip(x[first * own..].chunks_exact(own)) {
                y[at..at + own].copy_from_slice(x);
            }
            at += own;
        }
    });
}

/// Columns `from..from + own` of `dy`, whose rows have `width` values.
pub(crate) fn columns(dy: &[f32], width: usize, from: usize, own: usize, dx: &mut [f32], threads: &Threads) {
    threads.rows(dx, own, COST * own, |first, dx| {
        for (dx, dy) in dx.chunks_exact_mut(own).zip(dy[first * width..].chunks_exact(width)) {
            dx.copy_from_slice(&dy[from..from + own]);
        }
    });
}

/// Transposes each sample's `rows x columns` matrix.
pub(crate) fn permute(x: &[f32], y: &mut [f32], rows: usize, columns: usize, threads: &Threads) {
    let mut samples: Vec<_> =
        x.chunks_exact(rows * columns).zip(y.chunks_exact_mut(rows * columns)).collect();
    threads.each(&mut samples, |_, (x, y)| transpose(x, columns, rows, y, rows));
}

#[cfg(test)]
mod tests {
    use super::{super::vector::tests::noise, *};

    #[test]
    fn sums_are_those_of_plain_loops_on_any_number_of_threads() {
        for (count, len) in [(2, 1), (2, 77), (3, 200_001), (4, 1000)] {
            let values: Vec<Vec<f32>> = (0..count).map(|k| noise(len, k)).collect();
            let xs: Vec<&[f32]> = values.iter().map(|x| &x[..]).collect();
            for rectified in [false, true] {
                for threads in [1, 2] {
                    let threads = Threads::new(threads).unwrap();
                    let mut y = vec![9.0; len];
                    threads.enter(|| sum(&xs, rectified, &mut y, &threads));
                    for (k, y) in y.iter().enumerate() {
                        let mut expected = xs[0][k];
                        xs[1..].iter().for_each(|x| expected += x[k]);
                        assert_eq!(*y, if rectified && expected < 0.0 { 0.0 } else { expected });
                    }
                }
            }
        }
    }

    #[test]
    fn columns_take_apart_what_concat_joined() {
        let (widths, rows) = ([3, 1, 20], 9000);
        let values: Vec<Vec<f32>> = widths.iter().map(|width| noise(rows * width, 5)).collect();
        let xs: Vec<&[f32]> = values.iter().map(|x| &x[..]).collect();
        let threads = Threads::new(2).unwrap();
        let mut y = vec![0.0; rows * 24];
        threads.enter(|| concat(&xs, &widths, &mut y, &threads));
        assert_eq!(y[24 * 7..24 * 8], [&xs[0][21..24], &xs[1][7..8], &xs[2][140..160]].concat());
        let mut from = 0;
        for (x, own) in xs.iter().zip(widths) {
            let mut part = vec![0.0; rows * own];
            threads.enter(|| columns(&y, 24, from, own, &mut part, &threads));
            assert_eq!(&part, x);
            from += own;
        }
    }

    #[test]
    fn permuting_twice_gives_the_same() {
        let threads = Threads::new(2).unwrap();
        for (samples, rows, columns) in [(1, 1, 1), (3, 3, 35), (7, 50, 12)] {
            let x = noise(samples * rows * columns, 3);
            let (mut y, mut z) = (x.clone(), x.clone());
            threads.enter(|| permute(&x, &mut y, rows, columns, &threads));
            threads.enter(|| permute(&y, &mut z, columns, rows, &threads));
            assert_eq!(x, z);
            assert_eq!(y[rows * columns - 1], x[rows * columns - 1]);
            assert_eq!(y[rows.min(rows * columns - 1)], x[1.min(rows * columns - 1)]);
        }
    }
}
