//! Model files and layer lists: reading arbitrary bytes does not panic, and an accepted model survives a
//! round trip unchanged.
#![no_main]

use fl_model::{Backend, GlobalModel, ModelSpec};
use fl_protocol::Normalization;
use libfuzzer_sys::fuzz_target;
use safetensors::SafeTensors;

/// Largest network that is built: a small quantized file may declare a large one.
const MAX_PARAMETERS: usize = 1 << 16;

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        layer_list(text);
    }
    if declared(data).is_some_and(|parameters| parameters > MAX_PARAMETERS) {
        return;
    }
    if let Ok(global) = GlobalModel::from_safetensors(data) {
        assert_eq!(global.parameters.len(), global.network.layout().parameters());
        assert!(global.parameters.iter().all(|value| value.is_finite()));
        again(&global);
    }
});

/// Parameters of the network that a file claims to hold.
fn declared(data: &[u8]) -> Option<usize> {
    let (_, header) = SafeTensors::read_metadata(data).ok()?;
    let spec = header.metadata().as_ref()?.get("model")?;
    Some(ModelSpec::from_json(spec).ok()?.num_parameters())
}

fn layer_list(text: &str) {
    let Ok(spec) = ModelSpec::from_json(text) else { return };
    // Plans the network for the fused engine.
    assert_ne!(Backend::Auto.for_spec(&spec), Backend::Auto);
    let parameters = spec.num_parameters();
    if parameters <= MAX_PARAMETERS {
        let normalization = Normalization { mean: vec![0.0], std: vec![1.0] };
        again(&GlobalModel {
            round: 1,
            network: spec.into(),
            normalization,
            names: Default::default(),
            parameters: vec![0.5; parameters],
            buffers: fl_model::Buffers::default(),
        });
    }
}

fn again(global: &GlobalModel) {
    let file = global.to_safetensors().expect("a model that was read can be written");
    assert_eq!(GlobalModel::from_safetensors(&file).as_ref(), Ok(global));
}
