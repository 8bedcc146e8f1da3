//! The bundled digits: 1,797 images of 8 x 8 pixels with values 0 to 16.
//!
//! Source and licence: `assets/LICENSE-digits.md`.

use crate::{DataNames, Dataset, DatasetError, DatasetSpec, Features, Part, split};
use fl_protocol::{Input, Normalization, Task};
use flate2::read::GzDecoder;
use std::{
    io::{BufRead, BufReader},
    path::Path,
};

const FILE: &[u8] = include_bytes!("../assets/digits.csv.gz");
const PIXELS: usize = 64;

/// Mean and standard deviation of all pixels of the file.
const NORMALIZATION: (f32, f32) = (4.884_165, 6.016_788);

pub(crate) fn load(part: Part) -> Result<Dataset, DatasetError> {
    let path = Path::new("the bundled digits.csv.gz");
    let mut pixels = Vec::with_capacity(1797 * PIXELS);
    let mut labels = Vec::with_capacity(1797);
    for line in BufReader::new(GzDecoder::new(FILE)).lines() {
        let line = line.map_err(|error| DatasetError::reading(path, error))?;
        let before = pixels.len();
        for value in line.split(',') {
            pixels
                .push(value.parse::<u8>().map_err(|_| DatasetError::damaged(path, "a value is not a byte"))?);
        }
        match pixels.pop() {
            Some(label @ 0..=9) if pixels.len() - before == PIXELS => labels.push(u32::from(label)),
            _ => return Err(DatasetError::damaged(path, "a row does not hold 64 pixels and a digit")),
        }
    }
    // The bundled digits always keep their test part, like a set with a test file of its own.
    let part = part.without_test_samples();
    let (train, test) = split::every_fifth_is_test(Features::U8(pixels), labels, PIXELS, part);
    Ok(Dataset {
        name: DatasetSpec::Digits.to_string(),
        names: DataNames::default(),
        input: Input::Image { shape: vec![1, 8, 8] },
        task: Task::classes(10),
        normalization: Normalization { mean: vec![NORMALIZATION.0], std: vec![NORMALIZATION.1] },
        train,
        test,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_digits_are_there_and_split_as_documented() {
        let data = load(Part::Both).unwrap();
        assert_eq!((data.train.len(), data.test.len()), (1442, 355));
        let Features::U8(pixels) = data.train.features() else { panic!("bytes expected") };
        assert!(pixels.iter().all(|&p| p <= 16));
        for digit in 0..10 {
            let count = |labels: &[u32]| labels.iter().filter(|&&label| label == digit).count();
            assert!((34..=37).contains(&count(data.test.labels())), "{digit}");
            assert!((139..=147).contains(&count(data.train.labels())), "{digit}");
        }
    }

    #[test]
    fn the_normalisation_is_that_of_the_file() {
        let data = load(Part::Both).unwrap();
        let values: Vec<f64> = [&data.train, &data.test]
            .iter()
            .flat_map(|split| match split.features() {
                Features::U8(pixels) => pixels.iter().map(|&p| f64::from(p)).collect::<Vec<_>>(),
                _ => panic!("bytes expected"),
            })
            .collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
        assert!((mean - f64::from(NORMALIZATION.0)).abs() < 1e-5, "{mean}");
        assert!((variance.sqrt() - f64::from(NORMALIZATION.1)).abs() < 1e-5, "{}", variance.sqrt());
    }

    #[test]
    fn a_part_that_is_not_asked_for_is_empty() {
        let train = load(Part::Train).unwrap();
        assert!(train.test.is_empty() && train.train.len() == 1442);
        let test = load(Part::Test).unwrap();
        assert!(test.train.is_empty() && test.test.len() == 355);
    }
}
