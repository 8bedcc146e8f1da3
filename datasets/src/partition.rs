//! Assigns training samples to workers.
//!
//! Where this speaks of classes, data without classes have [`Strata`] in their place: stretches of a text, groups of
//! numbers by their size.

use crate::{
    seed::{Purpose, seeded_rng},
    strata::Strata,
};
use rand::{Rng, RngExt, rngs::ChaCha8Rng, seq::SliceRandom};
use rand_distr::{Distribution, Gamma};
use std::{fmt, str::FromStr};

/// A way to divide training data among workers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Partition {
    /// `iid`: at random.
    Iid,
    /// `dirichlet:A`: each worker has its own mixture of classes, drawn from a Dirichlet distribution
    /// (Hsu, Qi and Brown 2019, "Measuring the effects of non-identical data distribution"). The
    /// smaller `A`, the fewer classes a worker has. With `C` classes of shares `p` the parameters are
    /// `A * C * p`: `A` itself for balanced classes, as most papers since have it (`A * p` in Hsu's
    /// own notation, which counts `A` over all classes).
    Dirichlet(f64),
    /// `shards:K`: the samples sorted by class are cut into shards of equal size, and each worker
    /// gets `K` of them (McMahan et al. 2017, section 3). A text is cut as it stands: with `shards:1` a worker has
    /// one stretch of it.
    Shards(usize),
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Iid => f.write_str("iid"),
            Self::Dirichlet(alpha) => write!(f, "dirichlet:{alpha}"),
            Self::Shards(shards) => write!(f, "shards:{shards}"),
        }
    }
}

impl FromStr for Partition {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if s == "iid" {
            return Ok(Self::Iid);
        }
        if let Some(alpha) = s.strip_prefix("dirichlet:") {
            return match alpha.parse() {
                Ok(alpha) if (1e-3..=1e6).contains(&alpha) => Ok(Self::Dirichlet(alpha)),
                _ => Err(format!("`{alpha}` is not a concentration for dirichlet: use 0.001 to 1000000")),
            };
        }
        if let Some(shards) = s.strip_prefix("shards:") {
            return match shards.parse() {
                Ok(shards @ 1..=10_000) => Ok(Self::Shards(shards)),
                _ => Err(format!("`{shards}` is not a number of shards: use 1 to 10000")),
            };
        }
        Err(format!("unknown partition `{s}`: use iid, dirichlet:A (such as dirichlet:0.1) or shards:K"))
    }
}

impl Partition {
    /// Divides the samples of these strata into `parts` parts: every sample is in exactly one part,
    /// and no part is empty unless there are more parts than samples. Indices in a part ascend.
    ///
    /// # Panics
    /// If a class is not below the number of classes, or `parts` is 0.
    pub fn split(&self, strata: &Strata<'_>, parts: usize, seed: u64) -> Vec<Vec<u32>> {
        assert!(parts > 0, "a data set is divided into at least one part");
        let mut rng = seeded_rng(seed, "split", 0, Purpose::Partition);
        let mut assigned = match *self {
            Self::Iid => deal(&shuffled(strata.labels.len(), &mut rng), parts),
            Self::Dirichlet(alpha) => {
                split_dirichlet(&mut pools(strata, true, &mut rng), alpha, parts, &mut rng)
            }
            Self::Shards(shards) => {
                let sorted = pools(strata, !strata.ordered, &mut rng).concat();
                let mut cut = deal(&sorted, parts.saturating_mul(shards));
                cut.shuffle(&mut rng);
                cut.chunks(shards).map(<[_]>::concat).collect()
            }
        };
        fill_empty(&mut assigned);
        assigned.iter_mut().for_each(|part| part.sort_unstable());
        assigned
    }

    /// Draws at most `limit` samples for one worker from its id alone, for use when the other workers are
    /// unknown: two workers may own the same sample.
    ///
    /// # Panics
    /// If a class is not below the number of classes.
    pub fn draw(&self, strata: &Strata<'_>, worker_id: &str, seed: u64, limit: usize) -> Vec<u32> {
        let mut rng = seeded_rng(seed, worker_id, 0, Purpose::Partition);
        let count = limit.min(strata.labels.len());
        let mut drawn = match *self {
            Self::Iid => shuffled(strata.labels.len(), &mut rng)[..count].to_vec(),
            Self::Dirichlet(alpha) => {
                draw_dirichlet(&mut pools(strata, true, &mut rng), alpha, count, &mut rng)
            }
            Self::Shards(shards) => {
                let sorted = pools(strata, !strata.ordered, &mut rng).concat();
                draw_shards(&sorted, shards, count, strata.count, &mut rng)
            }
        };
        drawn.sort_unstable();
        drawn
    }
}

fn shuffled(len: usize, rng: &mut ChaCha8Rng) -> Vec<u32> {
    let mut indices: Vec<u32> = (0..len as u32).collect();
    indices.shuffle(rng);
    indices
}

/// Cuts a list into `parts` runs whose lengths differ by one at most.
fn deal(indices: &[u32], parts: usize) -> Vec<Vec<u32>> {
    // 128 bits, because the product may overflow 64.
    let border = |part: usize| (part as u128 * indices.len() as u128 / parts as u128) as usize;
    (0..parts).map(|part| indices[border(part)..border(part + 1)].to_vec()).collect()
}

/// The samples of every class, each class shuffled if asked for.
fn pools(strata: &Strata<'_>, shuffle: bool, rng: &mut ChaCha8Rng) -> Vec<Vec<u32>> {
    let mut pools = vec![Vec::new(); strata.count];
    for (index, &label) in strata.labels.iter().enumerate() {
        pools[label as usize].push(index as u32);
    }
    if shuffle {
        pools.iter_mut().for_each(|pool| pool.shuffle(rng));
    }
    pools
}

/// Moves one sample from the largest part to each empty one, as long as the largest part has two.
fn fill_empty(parts: &mut [Vec<u32>]) {
    while let Some(empty) = parts.iter().position(Vec::is_empty) {
        let largest = (0..parts.len()).max_by_key(|&part| parts[part].len()).unwrap_or(empty);
        if parts[largest].len() < 2 {
            return;
        }
        let moved = parts[largest].pop();
        parts[empty].extend(moved);
    }
}

/// Draws a mixture of classes whose expected shares are those of the pools' sizes.
fn mixture(sizes: &[usize], alpha: f64, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let total = sizes.iter().sum::<usize>().max(1) as f64;
    let classes = sizes.iter().filter(|&&size| size > 0).count() as f64;
    let mut draw = |size: usize| match Gamma::new(alpha * classes * size as f64 / total, 1.0) {
        Ok(gamma) if size > 0 => gamma.sample(rng),
        _ => 0.0,
    };
    let mut weights: Vec<f64> = sizes.iter().map(|&size| draw(size)).collect();
    if weights.iter().sum::<f64>() <= 0.0 {
        // With a tiny concentration all draws may underflow to 0; the distribution's limit is a single class.
        let sizes: Vec<f64> = sizes.iter().map(|&size| size as f64).collect();
        if let Some(class) = pick(&sizes, rng) {
            weights[class] = 1.0;
        }
    }
    weights
}

/// An index drawn in proportion to the weights; none if all are 0.
fn pick(weights: &[f64], rng: &mut ChaCha8Rng) -> Option<usize> {
    let total: f64 = weights.iter().sum();
    if total <= 0.0 {
        return None;
    }
    let mut rest = rng.random::<f64>() * total;
    for (index, &weight) in weights.iter().enumerate() {
        if rest < weight {
            return Some(index);
        }
        rest -= weight;
    }
    // Rounding may leave `rest` just above the last weight.
    weights.iter().rposition(|&weight| weight > 0.0)
}

/// Parts of equal size, each drawn without replacement by its own mixture. An exhausted class leaves the
/// mixture; a part whose classes are all exhausted draws from the remaining samples.
fn split_dirichlet(pools: &mut [Vec<u32>], alpha: f64, parts: usize, rng: &mut ChaCha8Rng) -> Vec<Vec<u32>> {
    let sizes: Vec<usize> = pools.iter().map(Vec::len).collect();
    let total: usize = sizes.iter().sum();
    let border = |part: usize| (part as u128 * total as u128 / parts as u128) as usize;
    let fill = |part: usize| {
        let size = border(part + 1) - border(part);
        let mut weights = mixture(&sizes, alpha, rng);
        for (weight, pool) in weights.iter_mut().zip(pools.iter()) {
            if pool.is_empty() {
                *weight = 0.0;
            }
        }
        let mut samples = Vec::with_capacity(size);
        while samples.len() < size {
            let Some(class) = pick(&weights, rng) else {
                weights = pools.iter().map(|pool| pool.len() as f64).collect();
                continue;
            };
            samples.extend(pools[class].pop());
            if pools[class].is_empty() {
                weights[class] = 0.0;
            }
        }
        samples
    };
    (0..parts).map(fill).collect()
}

/// At most `count` samples by one mixture. An exhausted class is not replaced by others, because a skewed
/// mixture would then become the whole data set when `count` is large.
fn draw_dirichlet(pools: &mut [Vec<u32>], alpha: f64, count: usize, rng: &mut ChaCha8Rng) -> Vec<u32> {
    let sizes: Vec<usize> = pools.iter().map(Vec::len).collect();
    let weights = mixture(&sizes, alpha, rng);
    let drawn = (0..count).filter_map(|_| pools[pick(&weights, rng)?].pop());
    drawn.collect()
}

/// `shards` shards at random positions of the sorted samples, none longer than an average class.
fn draw_shards(
    sorted: &[u32],
    shards: usize,
    count: usize,
    num_classes: usize,
    rng: &mut impl Rng,
) -> Vec<u32> {
    let class = sorted.len().div_ceil(num_classes.max(1));
    let size = count.div_ceil(shards).min(class).max(1);
    let mut places: Vec<&[u32]> = sorted.chunks(size).collect();
    places.shuffle(rng);
    let mut drawn = places[..shards.min(places.len())].concat();
    drawn.truncate(count);
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_nonsense_is_refused() {
        for name in ["iid", "dirichlet:0.1", "dirichlet:100", "shards:2"] {
            assert_eq!(name.parse::<Partition>().unwrap().to_string(), name);
        }
        for bad in [
            "",
            "IID",
            "dirichlet",
            "dirichlet:0",
            "dirichlet:-1",
            "dirichlet:NaN",
            "dirichlet:inf",
            "shards:0",
        ] {
            assert!(bad.parse::<Partition>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mixture_never_vanishes() {
        let mut rng = seeded_rng(0, "", 0, Purpose::Partition);
        for _ in 0..200 {
            assert!(mixture(&[10, 0, 30], 1e-3, &mut rng).iter().sum::<f64>() > 0.0);
        }
    }

    #[test]
    fn dealing_is_even() {
        let indices: Vec<u32> = (0..10).collect();
        let sizes: Vec<usize> = deal(&indices, 4).iter().map(Vec::len).collect();
        assert_eq!(sizes.iter().sum::<usize>(), 10);
        assert!(sizes.iter().all(|&size| size == 2 || size == 3));
    }
}
