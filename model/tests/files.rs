//! Model files that were damaged at random: refused with a sentence, or read as what they say.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use fl_model::{GlobalModel, ModelError, ModelSpec, init_parameters};
use fl_protocol::Normalization;
use fl_quant::{Scheme, Spec};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use std::{fs, path::Path};

const MUTATIONS: usize = 4_000;

fn model(layers: &str) -> GlobalModel {
    let spec = format!(r#"{{"name":"t","input_shape":[2,4,4],"num_classes":3,"layers":[{layers}]}}"#);
    let spec = ModelSpec::from_json(&spec).unwrap();
    let parameters = init_parameters(&spec, 1);
    let normalization = Normalization { mean: vec![0.5, 0.25], std: vec![0.25, 1.0] };
    GlobalModel {
        round: 7,
        network: spec.into(),
        normalization,
        names: fl_protocol::DataNames::default(),
        parameters,
        buffers: fl_model::Buffers::default(),
    }
}

fn good_files() -> Vec<(String, Vec<u8>)> {
    let dense = model(r#"{"type":"flatten"},{"type":"linear","in_features":32,"out_features":3}"#);
    let image = model(
        r#"{"type":"conv2d","in_channels":2,"out_channels":4,"kernel":3,"padding":1,"stride":1},{"type":"relu"},
        {"type":"group_norm","groups":2,"channels":4},{"type":"max_pool2d","kernel":2,"stride":2},
        {"type":"dropout","p":0.5},{"type":"flatten"},{"type":"linear","in_features":16,"out_features":3}"#,
    );
    let mut files = vec![
        ("dense".to_owned(), dense.to_safetensors().unwrap()),
        ("image".to_owned(), image.to_safetensors().unwrap()),
    ];
    for scheme in Scheme::ALL {
        for entropy in [false, true] {
            let spec = Spec { entropy, ..Spec::new(scheme, 4) };
            files.push((format!("{scheme}, entropy {entropy}"), dense.to_quantized(&spec).unwrap()));
        }
    }
    files
}

/// A file that is read must be one that could have been written.
fn check(file: &[u8]) -> Result<(), ModelError> {
    let global = GlobalModel::from_safetensors(file)?;
    global.network.known().unwrap().validate().unwrap();
    assert_eq!(global.parameters.len(), global.network.layout().parameters());
    assert!(global.parameters.iter().all(|value| value.is_finite()));
    let again = GlobalModel::from_safetensors(&global.to_safetensors().unwrap()).unwrap();
    assert_eq!(again, global);
    Ok(())
}

fn mutate(file: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
    let header = (8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize).min(file.len());
    for _ in 0..rng.random_range(1..4) {
        // Mostly in the header: in the data, checksums refuse nearly everything.
        let end = if rng.random_bool(0.8) { header } else { file.len() };
        let at = rng.random_range(0..end.min(file.len()));
        match rng.random_range(0..6) {
            0 => file[at] ^= 1 << rng.random_range(0..8),
            1 => file.truncate(at.max(8)),
            2 => file.insert(at, rng.random()),
            3 => drop(file.remove(at)),
            _ => {
                // Another number keeps the JSON whole.
                let digit = file[..header.min(file.len())].iter().skip(at).position(u8::is_ascii_digit);
                if let Some(digit) = digit {
                    file[at + digit] = rng.random_range(b'0'..=b'9');
                }
            }
        }
        if file.len() <= 8 {
            return;
        }
    }
}

#[test]
fn a_mutated_file_is_refused_or_read_as_it_says() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let (mut read, mut refused) = (0, 0);
    for (name, good) in good_files() {
        check(&good).unwrap_or_else(|error| panic!("{name}: {error}"));
        for _ in 0..MUTATIONS {
            let mut file = good.clone();
            mutate(&mut file, &mut rng);
            match check(&file) {
                Ok(()) => read += 1,
                Err(ModelError::BadFile(_) | ModelError::BadSpec(_)) => refused += 1,
                Err(error) => panic!("{name}: no file is to blame for: {error}"),
            }
        }
    }
    assert!(read > MUTATIONS / 10 && refused > MUTATIONS, "{read} read, {refused} refused");
}

#[test]
fn the_seeds_of_the_fuzz_target_are_good_files() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/model");
    let mut seeds = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        if path.extension().is_some_and(|extension| extension == "json") {
            ModelSpec::from_json(std::str::from_utf8(&bytes).unwrap()).unwrap();
        } else {
            check(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
        seeds += 1;
    }
    assert!(seeds >= 5);
}
