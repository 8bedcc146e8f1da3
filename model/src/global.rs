//! The global model as a safetensors file in PyTorch's layout, exact or quantized.
//!
//! A large model should be in memory once: [`ModelView`] reads a file whose parameters stay where they are, and
//! [`GlobalModel::exact_header`] lets a caller write the next file without a copy of the parameters beside it.

use crate::{
    buffers::Buffers,
    error::ModelError,
    header::check_header_size,
    import,
    network::{Network, checked_layout},
    spec::ModelSpec,
};
use fl_protocol::{DataNames, ModelLayout, Normalization, TensorLayout};
use fl_quant::{Encoder, Spec, Stream, encode_update};
use safetensors::{Dtype, SafeTensors};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    ops::Range,
};

/// A model at the end of a round, with all that is needed to use it.
#[derive(Debug, Clone, PartialEq)]
pub struct GlobalModel {
    /// Rounds that made it: 0 is the initial model.
    pub round: u64,
    /// The network, or at least its tensors.
    pub network: Network,
    /// How raw features become its inputs. Of no meaning where the network is not known.
    pub normalization: Normalization,
    /// What its classes and inputs are called, if they have names.
    pub names: DataNames,
    /// All parameters in canonical order.
    pub parameters: Vec<f32>,
    /// Integer tensors that travel with parameters whose network is not known.
    pub buffers: Buffers,
}

/// `__metadata__` of the file; every value is a string, as the format demands.
#[derive(Serialize)]
struct Metadata {
    /// Names of the integer tensors, if there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    buffers: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    features: Option<String>,
    format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_shape: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    normalization: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    num_classes: Option<String>,
    round: String,
    /// Names and shapes in canonical order, where no network gives them.
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<String>,
    version: &'static str,
}

impl GlobalModel {
    /// Writes the file. The same model gives the same bytes in every process.
    ///
    /// # Errors
    /// Parameters that are not finite or not as many as the network has: such a file must not exist.
    pub fn to_safetensors(&self) -> Result<Vec<u8>, ModelError> {
        self.check(&self.parameters)?;
        let mut file = self.exact_header()?;
        file.reserve_exact(4 * self.parameters.len());
        for value in &self.parameters {
            file.extend_from_slice(&value.to_le_bytes());
        }
        file.extend(self.buffers.after());
        Ok(file)
    }

    /// The file of [`Self::to_safetensors`] up to its parameters, which follow as f32, little-endian, in canonical
    /// order, and then [`Buffers::after`]. The model's own `parameters` are not looked at.
    ///
    /// # Errors
    /// If the header would be larger than a reader takes.
    pub fn exact_header(&self) -> Result<Vec<u8>, ModelError> {
        let tensors: Vec<_> =
            self.network.layout().tensors().iter().map(|t| ("F32", t.shape.clone(), 4 * t.len)).collect();
        let mut file = self.header(&tensors, self.buffers.before().len())?;
        file.extend(self.buffers.before());
        Ok(file)
    }

    /// Writes the file with an fl-quant stream in place of each tensor (`docs/format.md`). The same model
    /// and `spec` give the same bytes.
    ///
    /// # Errors
    /// As [`Self::to_safetensors`].
    pub fn to_quantized(&self, spec: &Spec) -> Result<Vec<u8>, ModelError> {
        self.check(&self.parameters)?;
        self.quantized(&self.parameters, spec)
    }

    /// The quantized file of checked `parameters`.
    fn quantized(&self, parameters: &[f32], spec: &Spec) -> Result<Vec<u8>, ModelError> {
        let mut streams = Vec::new();
        encode_update(
            &mut Encoder::default(),
            parameters,
            &self.network.layout().shapes(),
            spec,
            &mut streams,
        )
        .map_err(|error| ModelError::BadFile(error.to_string()))?;
        let tensors: Vec<_> = streams.iter().map(|stream| ("U8", vec![stream.len()], stream.len())).collect();
        let buffers = self.buffers.all();
        let mut file = self.header(&tensors, buffers.len())?;
        file.extend(buffers);
        file.reserve_exact(streams.iter().map(Vec::len).sum());
        // Each stream goes once it is copied.
        streams.into_iter().for_each(|stream| file.extend_from_slice(&stream));
        Ok(file)
    }

    fn check(&self, parameters: &[f32]) -> Result<(), ModelError> {
        let expected = self.network.layout().parameters();
        if parameters.len() != expected {
            return Err(ModelError::BadFile(format!(
                "{} parameters given, the network has {expected}",
                parameters.len(),
            )));
        }
        check_finite(parameters)?;
        let Some(spec) = self.network.spec() else { return Ok(()) };
        check_normalization(&self.normalization, spec)?;
        check_names(&self.names, spec)
    }

    /// The file up to its data: type, shape and bytes of each tensor are given, and the bytes of the buffers that stand
    /// before them.
    fn header(&self, tensors: &[(&str, Vec<usize>, usize)], before: usize) -> Result<Vec<u8>, ModelError> {
        // Written by hand: the safetensors crate keeps metadata in a HashMap, whose order differs
        // from process to process, and the bytes must not.
        let list = |names: &[String]| (!names.is_empty()).then(|| json!(names).to_string());
        let spec = self.network.spec();
        let tensors_of = |layout: &ModelLayout| {
            json!(layout.tensors().iter().map(|t| (&t.name, &t.shape)).collect::<Vec<_>>()).to_string()
        };
        let buffers: Vec<String> = self.buffers.names().map(str::to_owned).collect();
        let metadata = Metadata {
            buffers: list(&buffers),
            features: list(&self.names.features),
            format: "pt",
            input_shape: spec.map(|spec| json!(spec.input_shape()).to_string()),
            labels: list(&self.names.labels),
            model: spec.map(ModelSpec::to_json),
            normalization: spec.and_then(|_| serde_json::to_string(&self.normalization).ok()),
            num_classes: spec.map(|spec| spec.num_classes().to_string()),
            round: self.round.to_string(),
            tensors: match &self.network {
                Network::Spec(_) => None,
                Network::Tensors(layout) => Some(tensors_of(layout)),
            },
            version: env!("CARGO_PKG_VERSION"),
        };
        let mut header = Map::new();
        header.insert("__metadata__".into(), json!(metadata));
        let is_exact = tensors.iter().all(|(dtype, ..)| *dtype == "F32");
        let parameters = tensors.iter().map(|(.., bytes)| bytes).sum();
        self.buffers.describe(if is_exact { parameters } else { 0 }, &mut header);
        let mut end = before;
        for (tensor, (dtype, shape, bytes)) in self.network.layout().tensors().iter().zip(tensors) {
            let start = end;
            end += bytes;
            let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
            header.insert(tensor.name.clone(), entry);
        }
        let mut header = Value::Object(header).to_string();
        // The data starts at a multiple of 8.
        header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
        let mut file = Vec::with_capacity(8 + header.len());
        file.extend_from_slice(&(header.len() as u64).to_le_bytes());
        file.extend_from_slice(header.as_bytes());
        // Long names could make a file that no reader takes.
        check_header_size(&file)?;
        Ok(file)
    }

    /// Reads and checks a file from anywhere, exact or quantized: names, shapes, types and finite values.
    ///
    /// The parameters are allocated once all tensors are checked. Those of an exact file take as many bytes
    /// as the file; a quantized file may expand, at most to `MAX_PARAMETERS`.
    ///
    /// # Errors
    /// [`ModelError::BadFile`] or [`ModelError::BadSpec`] with what is wrong.
    pub fn from_safetensors(bytes: &[u8]) -> Result<Self, ModelError> {
        ModelView::read(bytes)?.into_model()
    }

    /// Parameters without a network.
    pub fn of_tensors(round: u64, layout: ModelLayout, parameters: Vec<f32>) -> Self {
        Self {
            round,
            network: layout.into(),
            normalization: Normalization { mean: vec![0.0], std: vec![1.0] },
            names: DataNames::default(),
            parameters,
            buffers: Buffers::default(),
        }
    }

    /// Reads the tensors of any safetensors file, in the order of their data, as the model of round 0: F32, F16 and BF16
    /// become its parameters, in f32, integers its buffers.
    ///
    /// # Errors
    /// [`ModelError::BadFile`] with what is wrong.
    pub fn from_any_safetensors(bytes: &[u8]) -> Result<Self, ModelError> {
        let bad = |error: String| ModelError::BadFile(error);
        check_header_size(bytes)?;
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| bad(error.to_string()))?;
        let file = SafeTensors::deserialize(bytes).map_err(|error| bad(error.to_string()))?;
        let (mut tensors, mut buffers) = (Vec::new(), Vec::new());
        for name in header.offset_keys() {
            let view = file.tensor(&name).map_err(|error| bad(error.to_string()))?;
            match view.dtype() {
                Dtype::F32 | Dtype::F16 | Dtype::BF16 => tensors.push((name, view.shape().to_vec())),
                dtype if Buffers::takes(dtype) => buffers.push(name),
                dtype => {
                    return Err(bad(format!(
                        "tensor `{name}` is {dtype:?}: convert it to F32 (F16, BF16 and integers are taken too)"
                    )));
                }
            }
        }
        let layout = checked_layout(tensors)?;
        let mut parameters = Vec::with_capacity(layout.parameters());
        for tensor in layout.tensors() {
            let view = file.tensor(&tensor.name).map_err(|error| bad(error.to_string()))?;
            import::append(&mut parameters, &view);
        }
        check_finite(&parameters)?;
        let buffers = Buffers::read(&file, buffers.iter().map(String::as_str))?;
        Ok(Self { buffers, ..Self::of_tensors(0, layout, parameters) })
    }
}

/// A checked model file whose parameters stay where they are.
#[derive(Debug)]
pub struct ModelView<'a> {
    /// Everything but the parameters, of which it has none.
    pub model: GlobalModel,
    /// The parameters in canonical order, if the file is exact and has them in that order without gaps, as every
    /// file of [`GlobalModel::to_safetensors`] has.
    pub parameters: Option<&'a [[u8; 4]]>,
    tensors: Vec<Stored<'a>>,
}

impl<'a> ModelView<'a> {
    /// Reads and checks a file from anywhere as [`GlobalModel::from_safetensors`] does, but allocates no
    /// parameters. The values of an exact file are checked, those of a quantized one when it is decoded.
    ///
    /// # Errors
    /// As [`GlobalModel::from_safetensors`].
    pub fn read(bytes: &'a [u8]) -> Result<Self, ModelError> {
        let bad = |error: String| ModelError::BadFile(error);
        check_header_size(bytes)?;
        let (header_len, header) =
            SafeTensors::read_metadata(bytes).map_err(|error| bad(error.to_string()))?;
        let metadata = header
            .metadata()
            .as_ref()
            .ok_or_else(|| bad("it has no __metadata__, so the network is unknown".into()))?;
        let file = SafeTensors::deserialize(bytes).map_err(|error| bad(error.to_string()))?;
        let round =
            required(metadata, "round")?.parse().map_err(|_| bad("its round is not a number".into()))?;
        let model = match (metadata.get("model"), metadata.get("tensors")) {
            (None, Some(tensors)) => {
                let tensors = serde_json::from_str(tensors)
                    .map_err(|error| bad(format!("its list of tensors cannot be read: {error}")))?;
                let names = read_names(metadata, "buffers")?;
                let buffers = Buffers::read(&file, names.iter().map(String::as_str))?;
                let model = GlobalModel::of_tensors(round, checked_layout(tensors)?, Vec::new());
                GlobalModel { buffers, ..model }
            }
            _ => {
                let spec = ModelSpec::from_json(required(metadata, "model")?)?;
                let normalization: Normalization = serde_json::from_str(required(metadata, "normalization")?)
                    .map_err(|error| bad(format!("its normalization cannot be read: {error}")))?;
                check_normalization(&normalization, &spec)?;
                let names = DataNames {
                    labels: read_names(metadata, "labels")?,
                    features: read_names(metadata, "features")?,
                };
                check_names(&names, &spec)?;
                GlobalModel {
                    round,
                    network: spec.into(),
                    normalization,
                    names,
                    parameters: Vec::new(),
                    buffers: Buffers::default(),
                }
            }
        };
        let layout = model.network.layout();
        let tensors = check_tensors(&file, &layout, model.buffers.len())?;
        let before = model.buffers.before().len();
        let place = |name: &str| header.info(name).map(|info| info.data_offsets.0..info.data_offsets.1);
        let parameters = in_order(&layout, &tensors, before, place)
            .and_then(|end| Some(bytes.get(8 + header_len..)?.get(before..end)?.as_chunks().0));
        drop(layout);
        Ok(Self { model, parameters, tensors })
    }

    /// The parameters, copied or decoded.
    ///
    /// # Errors
    /// If a value of a quantized file is not finite.
    pub fn into_model(self) -> Result<GlobalModel, ModelError> {
        let parameters = self.decoded()?;
        Ok(GlobalModel { parameters, ..self.model })
    }

    /// The parameters as numbers: where they are, if the file has them in order and its buffer is aligned, which
    /// is the rule; else copied or decoded.
    ///
    /// # Errors
    /// As [`Self::into_model`].
    pub fn values(&self) -> Result<Cow<'a, [f32]>, ModelError> {
        let in_place =
            self.parameters.filter(|_| cfg!(target_endian = "little")).map(<[[u8; 4]]>::as_flattened);
        match in_place.and_then(|bytes| bytemuck::try_cast_slice(bytes).ok()) {
            Some(values) => Ok(Cow::Borrowed(values)),
            None => self.decoded().map(Cow::Owned),
        }
    }

    /// [`GlobalModel::to_quantized`] without a copy of the parameters.
    ///
    /// # Errors
    /// As [`GlobalModel::to_quantized`].
    pub fn to_quantized(&self, spec: &Spec) -> Result<Vec<u8>, ModelError> {
        self.model.quantized(&self.values()?, spec)
    }

    fn decoded(&self) -> Result<Vec<f32>, ModelError> {
        decode(&self.tensors, &self.model.network.layout())
    }
}

fn decode(tensors: &[Stored<'_>], layout: &ModelLayout) -> Result<Vec<f32>, ModelError> {
    let mut parameters = Vec::with_capacity(layout.parameters());
    for tensor in tensors {
        match tensor {
            Stored::Exact(values) => {
                parameters.extend(values.iter().map(|bytes| f32::from_le_bytes(*bytes)));
            }
            Stored::Quantized(stream) => {
                stream.for_each_chunk(|_, values| parameters.extend_from_slice(values));
            }
        }
    }
    check_finite(&parameters)?;
    Ok(parameters)
}

/// End of the parameters in the data, if the tensors are exact and lie one after the other in canonical order from
/// `start` on. `place` tells where a tensor lies.
fn in_order(
    layout: &ModelLayout,
    tensors: &[Stored<'_>],
    start: usize,
    place: impl Fn(&str) -> Option<Range<usize>>,
) -> Option<usize> {
    layout.tensors().iter().zip(tensors).try_fold(start, |end, (tensor, stored)| {
        let place = place(&tensor.name)?;
        (matches!(stored, Stored::Exact(_)) && place.start == end).then_some(place.end)
    })
}

fn required<'a>(metadata: &'a HashMap<String, String>, key: &str) -> Result<&'a str, ModelError> {
    metadata
        .get(key)
        .map(String::as_str)
        .ok_or_else(|| ModelError::BadFile(format!("its metadata lacks `{key}`")))
}

/// A JSON list of names; an absent one is empty.
fn read_names(metadata: &HashMap<String, String>, key: &str) -> Result<Vec<String>, ModelError> {
    metadata.get(key).map_or(Ok(Vec::new()), |text| {
        serde_json::from_str(text)
            .map_err(|error| ModelError::BadFile(format!("its {key} cannot be read: {error}")))
    })
}

/// One checked tensor of a file.
#[derive(Debug)]
enum Stored<'a> {
    /// Finite values.
    Exact(&'a [[u8; 4]]),
    Quantized(Stream<'a>),
}

/// Checks every tensor.
fn check_tensors<'a>(
    file: &SafeTensors<'a>,
    layout: &ModelLayout,
    buffers: usize,
) -> Result<Vec<Stored<'a>>, ModelError> {
    if file.len() != layout.tensors().len() + buffers {
        return Err(ModelError::BadFile(format!(
            "it has {} tensors, its network has {}",
            file.len(),
            layout.tensors().len() + buffers
        )));
    }
    let tensors: Vec<_> =
        layout.tensors().iter().map(|tensor| check_tensor(file, tensor)).collect::<Result<_, _>>()?;
    let is_finite = |bytes: &[u8; 4]| f32::from_le_bytes(*bytes).is_finite();
    let finite = tensors.iter().all(|tensor| match tensor {
        Stored::Exact(values) => values.iter().all(is_finite),
        Stored::Quantized(_) => true,
    });
    if finite { Ok(tensors) } else { Err(not_finite()) }
}

fn check_tensor<'a>(file: &SafeTensors<'a>, tensor: &TensorLayout) -> Result<Stored<'a>, ModelError> {
    let bad = |reason: String| ModelError::BadFile(format!("tensor `{}` {reason}", tensor.name));
    let view = file.tensor(&tensor.name).map_err(|_| bad("is missing".into()))?;
    let (bytes, shape) = (view.data(), view.shape());
    match view.dtype() {
        Dtype::U8 => Stream::parse(bytes, tensor.len)
            .map(Stored::Quantized)
            .map_err(|error| bad(format!("cannot be decoded: {error}"))),
        Dtype::F32 if shape == tensor.shape => Ok(Stored::Exact(bytes.as_chunks().0)),
        dtype => Err(bad(format!("is {dtype:?} {shape:?}, its network needs F32 {:?}", tensor.shape))),
    }
}

fn check_finite(parameters: &[f32]) -> Result<(), ModelError> {
    match parameters.iter().all(|value| value.is_finite()) {
        true => Ok(()),
        false => Err(not_finite()),
    }
}

fn not_finite() -> ModelError {
    ModelError::BadFile("a parameter is not finite".into())
}

fn check_normalization(normalization: &Normalization, spec: &ModelSpec) -> Result<(), ModelError> {
    let lengths = [1, spec.input_shape()[0], spec.num_features()];
    let fits = |values: &[f32]| lengths.contains(&values.len()) && values.iter().all(|v| v.is_finite());
    if !fits(&normalization.mean) || !fits(&normalization.std) || normalization.std.contains(&0.0) {
        return Err(ModelError::BadFile(
            "its normalization must have one finite value for all features, for each channel or for each \
             feature, and no standard deviation of zero"
                .into(),
        ));
    }
    Ok(())
}

/// Checks names: at most one for each class, without duplicates, and one for every input or none.
fn check_names(names: &DataNames, spec: &ModelSpec) -> Result<(), ModelError> {
    let DataNames { labels, features } = names;
    if labels.len() > spec.num_classes() {
        return Err(ModelError::BadFile(format!(
            "it names {} labels, its network has {} classes",
            labels.len(),
            spec.num_classes()
        )));
    }
    let mut seen = HashSet::new();
    if let Some(twice) = labels.iter().find(|label| !seen.insert(*label)) {
        return Err(ModelError::BadFile(format!("its label `{twice}` stands there twice")));
    }
    if !features.is_empty() && features.len() != spec.num_features() {
        return Err(ModelError::BadFile(format!(
            "it names {} features, its network has {} inputs",
            features.len(),
            spec.num_features()
        )));
    }
    Ok(())
}
