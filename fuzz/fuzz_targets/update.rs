//! The body of `POST /update`: parsing arbitrary bytes does not panic, and an accepted update decodes to
//! finite values within its declared bound.
#![no_main]

use fl_protocol::{ModelLayout, Update, UpdateMeta, update, update::Encoded};
use fl_quant::{Encoder, Scheme, Spec, encode_update};
use libfuzzer_sys::{Corpus, fuzz_mutator, fuzz_target, fuzzer_mutate};
use std::sync::LazyLock;

static LAYOUT: LazyLock<ModelLayout> =
    LazyLock::new(|| ModelLayout::new([("1.weight".into(), vec![8, 40]), ("1.bias".into(), vec![8])]));

/// Valid updates of every scheme: random bytes alone rarely get past the container's header.
static SEEDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    Scheme::ALL.iter().flat_map(|scheme| [1, 3, 4, 8].map(|bits| good(*scheme, bits))).collect()
});

fn good(scheme: Scheme, bits: u8) -> Vec<u8> {
    let x: Vec<f32> = (0..LAYOUT.parameters()).map(|i| (i as f32).sin().powi(5)).collect();
    let mut streams = Vec::new();
    encode_update(&mut Encoder::default(), &x, &LAYOUT.shapes(), &Spec::new(scheme, bits), &mut streams)
        .expect("a good update can be encoded");
    let meta = UpdateMeta {
        worker_id: "w".parse().expect("a good name"),
        round: 3,
        num_samples: 10,
        loss: Some(0.5),
        accuracy: None,
        compute_factor: None,
        local_steps: Some(5),
        local_norm: None,
        reuse: None,
        metrics: Default::default(),
    };
    let tensors: Vec<_> = streams.iter().map(|bytes| Encoded::Stream(bytes)).collect();
    update::write(&meta, &LAYOUT, &tensors).expect("a good update can be written")
}

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    // Sometimes a fresh valid update, so that the search does not depend on a corpus.
    if seed % 16 == 0 {
        let start = &SEEDS[seed as usize / 16 % SEEDS.len()];
        if start.len() <= max_size.min(data.len()) {
            data[..start.len()].copy_from_slice(start);
            return fuzzer_mutate(data, start.len(), max_size);
        }
    }
    fuzzer_mutate(data, size, max_size)
});

fuzz_target!(|body: &[u8]| -> Corpus {
    let meta = update::peek_meta(body);
    let Ok(update) = Update::parse(body, &LAYOUT) else {
        return Corpus::Keep;
    };
    assert_eq!(meta.as_ref(), Ok(&update.meta), "both ways to read the metadata agree");
    assert!(update.max_abs.is_finite());
    let mut next = 0;
    update.for_each_chunk(|offset, values| {
        assert_eq!(offset, next, "chunks follow one another");
        next += values.len();
        for value in values {
            assert!(value.abs() <= update.max_abs, "{value} is beyond {}", update.max_abs);
        }
    });
    assert_eq!(next, LAYOUT.parameters());
    Corpus::Keep
});
