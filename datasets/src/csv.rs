//! Tables: comma-separated numbers and what is to be predicted from them.
//!
//! The label column is the one named `label`, `class`, `target` or `y` (in any case), else the last.
//! The first row is a header if it has such a name or holds no number at all. Labels that are all
//! whole numbers are classes as they stand; others are numbered in the order of their names, which the data
//! set keeps, so that tables with different labels can be mapped to one numbering
//! ([`Dataset::class_map`]). Every fifth row of each class is test data. Columns are standardised with the
//! mean and deviation of the training rows.
//!
//! With a [`Target`] the named columns are predicted instead: as numbers in their own unit, which are not scaled, as
//! labels that are 1 or 0, or as one label. Then every fifth row is test data.

use crate::{
    DataNames, Dataset, DatasetError, Features, Normalization, Part, Target, TargetKind,
    limits::{
        MAX_CLASSES, MAX_FEATURE_BYTES, MAX_NAMES_BYTES, MAX_OUTPUTS, MAX_SAMPLE_FEATURES, MAX_SAMPLES,
    },
    split::{self, Answers},
};
use csv::{ReaderBuilder, StringRecord, Trim};
use fl_protocol::{Input, Task};
use std::{collections::HashMap, path::Path};

const LABEL_NAMES: [&str; 4] = ["label", "class", "target", "y"];

pub(crate) fn load(
    name: &str,
    path: &Path,
    target: Option<&Target>,
    part: Part,
) -> Result<Dataset, DatasetError> {
    let mut table = read(name, path, target)?;
    let (answers, task, labels) = match target {
        Some(Target { columns, kind: kind @ (TargetKind::Regression | TargetKind::Multilabel) }) => {
            let outputs = columns.len();
            let answers = Answers::Numbers { values: std::mem::take(&mut table.targets), outputs };
            let task = match kind {
                TargetKind::Multilabel => Task::Multilabel { outputs },
                _ => Task::Regression { outputs },
            };
            (answers, task, columns.clone())
        }
        _ => {
            let Classes { labels, num_classes, names } = number_classes(&table, path)?;
            (Answers::Classes(labels), Task::classes(num_classes), names)
        }
    };
    let Table { width, values, columns, .. } = table;
    let normalization = standardise(&values, width, &answers.fifths());
    let (train, test) = split::every_fifth_is_test(Features::F32(values), answers, width, part);
    let names = DataNames { labels, features: columns };
    let input = Input::Vector { shape: vec![width] };
    Ok(Dataset { name: name.to_owned(), names, input, task, normalization, train, test })
}

/// What a column is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Input,
    Label,
    /// The output with this index.
    Output(usize),
}

/// The rows of a file. Labels are indices into `names`.
struct Table {
    width: usize,
    roles: Vec<Role>,
    /// Whether outputs must be 0 or 1.
    multilabel: bool,
    /// Names of the input columns; empty without a header, or beyond [`MAX_NAMES_BYTES`].
    columns: Vec<String>,
    rows: usize,
    values: Vec<f32>,
    labels: Vec<u32>,
    names: Vec<String>,
    /// The outputs of all rows.
    targets: Vec<f32>,
}

fn read(name: &str, path: &Path, target: Option<&Target>) -> Result<Table, DatasetError> {
    let mut reader = ReaderBuilder::new()
        .has_headers(false)
        .trim(Trim::All)
        .from_path(path)
        .map_err(|error| convert(name, path, error))?;
    let mut record = StringRecord::new();
    let mut next =
        |record: &mut StringRecord| reader.read_record(record).map_err(|error| convert(name, path, error));
    if !next(&mut record)? {
        return Err(DatasetError::unusable(path, "it is empty"));
    }
    let roles = roles(&record, target, path)?;
    let width = roles.iter().filter(|role| **role == Role::Input).count();
    if width == 0 || width > MAX_SAMPLE_FEATURES {
        return Err(DatasetError::unusable(path, "it needs a label column and at least one other column"));
    }
    let mut table = Table {
        width,
        roles,
        multilabel: target.is_some_and(|target| target.kind == TargetKind::Multilabel),
        columns: Vec::new(),
        rows: 0,
        values: Vec::new(),
        labels: Vec::new(),
        names: Vec::new(),
        targets: Vec::new(),
    };
    let mut ids = HashMap::new();
    let mut more = true;
    if target.is_some() || is_header(&record) {
        table.columns = column_names(&record, &table.roles);
        more = next(&mut record)?;
    }
    while more {
        table.push(&record, &mut ids, path)?;
        more = next(&mut record)?;
    }
    match table.rows {
        0 => Err(DatasetError::unusable(path, "it holds no rows below its header")),
        _ => Ok(table),
    }
}

/// The role of each column, from the first row.
fn roles(first: &StringRecord, target: Option<&Target>, path: &Path) -> Result<Vec<Role>, DatasetError> {
    let mut roles = vec![Role::Input; first.len()];
    let Some(target) = target else {
        roles[label_column(first)] = Role::Label;
        return Ok(roles);
    };
    if target.columns.len() > MAX_OUTPUTS {
        return Err(DatasetError::unusable(path, format!("at most {MAX_OUTPUTS} columns can be predicted")));
    }
    for (output, name) in target.columns.iter().enumerate() {
        let column = first.iter().position(|column| column == name).ok_or_else(|| {
            let columns = first.iter().map(shorten).take(50).collect::<Vec<_>>().join(", ");
            let what = format!("it has no column `{name}` for TARGET, its first row has {columns}");
            DatasetError::unusable(path, what)
        })?;
        roles[column] = match target.kind {
            TargetKind::Classification => Role::Label,
            TargetKind::Regression | TargetKind::Multilabel => Role::Output(output),
        };
    }
    Ok(roles)
}

impl Table {
    fn push(
        &mut self,
        record: &StringRecord,
        ids: &mut HashMap<String, u32>,
        path: &Path,
    ) -> Result<(), DatasetError> {
        let line = record.position().map_or(0, |position| position.line());
        let outputs = self.roles.len() - self.width;
        let numbers = self.values.len() + self.targets.len() + self.width + outputs;
        if self.rows == MAX_SAMPLES || numbers * 4 > MAX_FEATURE_BYTES {
            return Err(DatasetError::too_large(
                path,
                format!("line {line} is beyond {MAX_FEATURE_BYTES} bytes"),
            ));
        }
        self.rows += 1;
        let first_target = self.targets.len();
        for (column, field) in record.iter().enumerate() {
            let number = || {
                field.parse::<f32>().ok().filter(|value| value.is_finite()).ok_or_else(|| {
                    let field = shorten(field);
                    let what = format!("line {line}, column {}: `{field}` is not a number", column + 1);
                    DatasetError::unusable(path, what)
                })
            };
            // The reader refuses rows that are longer than the first.
            match self.roles.get(column).copied().unwrap_or(Role::Input) {
                Role::Input => self.values.push(number()?),
                Role::Label => {
                    let label = self.label_id(field, ids).ok_or_else(|| {
                        let what = format!("it has more than {MAX_CLASSES} different labels");
                        DatasetError::unusable(path, what)
                    })?;
                    self.labels.push(label);
                }
                Role::Output(output) => {
                    let value = number()?;
                    if self.multilabel && value != 0.0 && value != 1.0 {
                        let what = format!(
                            "line {line}, column {}: `{}` is neither 0 nor 1, as a label of several has to be",
                            column + 1,
                            shorten(field)
                        );
                        return Err(DatasetError::unusable(path, what));
                    }
                    let place = first_target + output;
                    self.targets.resize(self.targets.len().max(place + 1), 0.0);
                    self.targets[place] = value;
                }
            }
        }
        Ok(())
    }

    fn label_id(&mut self, field: &str, ids: &mut HashMap<String, u32>) -> Option<u32> {
        if let Some(&id) = ids.get(field) {
            return Some(id);
        }
        let id = self.names.len() as u32;
        (self.names.len() < MAX_CLASSES).then(|| {
            self.names.push(field.to_owned());
            ids.insert(field.to_owned(), id);
            id
        })
    }
}

fn column_names(header: &StringRecord, roles: &[Role]) -> Vec<String> {
    let inputs = header.iter().zip(roles).filter(|(_, role)| **role == Role::Input);
    let names: Vec<String> = inputs.map(|(name, _)| name.to_owned()).collect();
    let bytes: usize = names.iter().map(String::len).sum();
    if bytes <= MAX_NAMES_BYTES { names } else { Vec::new() }
}

fn label_column(first: &StringRecord) -> usize {
    let is_label = |field: &str| LABEL_NAMES.iter().any(|name| field.eq_ignore_ascii_case(name));
    match is_header(first) {
        true => first.iter().position(is_label).unwrap_or(first.len() - 1),
        false => first.len() - 1,
    }
}

fn is_header(first: &StringRecord) -> bool {
    // `y` alone does not make a row a header: it may be the label of a data row.
    let named = |field: &str| LABEL_NAMES[..3].iter().any(|name| field.eq_ignore_ascii_case(name));
    first.iter().any(named) || first.iter().all(|field| field.parse::<f64>().is_err())
}

/// The rows' classes.
struct Classes {
    labels: Vec<u32>,
    num_classes: usize,
    /// By class; empty if labels are numbers.
    names: Vec<String>,
}

/// Turns provisional label ids into classes.
fn number_classes(table: &Table, path: &Path) -> Result<Classes, DatasetError> {
    let numbers: Option<Vec<u32>> = table.names.iter().map(|name| name.parse().ok()).collect();
    let (classes, names) = match numbers {
        Some(numbers) => (numbers, Vec::new()),
        None => by_name(&table.names, path)?,
    };
    let num_classes = classes.iter().max().map_or(0, |&max| max as usize + 1);
    if num_classes > MAX_CLASSES {
        return Err(DatasetError::unusable(path, format!("a label is beyond {}", MAX_CLASSES - 1)));
    }
    let labels = table.labels.iter().map(|&id| classes[id as usize]).collect();
    Ok(Classes { labels, num_classes, names })
}

/// Numbers names in their order: the class of each, and the sorted names.
fn by_name(names: &[String], path: &Path) -> Result<(Vec<u32>, Vec<String>), DatasetError> {
    if names.iter().map(String::len).sum::<usize>() > MAX_NAMES_BYTES {
        let what =
            format!("its labels have names of more than {MAX_NAMES_BYTES} bytes: shorten or number them");
        return Err(DatasetError::unusable(path, what));
    }
    let mut order: Vec<usize> = (0..names.len()).collect();
    order.sort_by_key(|&id| &names[id]);
    let mut classes = vec![0; order.len()];
    order.iter().enumerate().for_each(|(class, &id)| classes[id] = class as u32);
    Ok((classes, order.into_iter().map(|id| names[id].clone()).collect()))
}

/// Mean and standard deviation of every column over the training rows. The deviation of a constant column
/// is set to 1.
fn standardise(values: &[f32], width: usize, is_test: &[bool]) -> Normalization {
    let mut sums = vec![(0.0f64, 0.0f64); width];
    let mut rows = 0.0f64;
    // Sums are relative to the first row: with a large offset the difference of squares would cancel.
    let origin = &values[..width];
    for (row, _) in values.chunks_exact(width).zip(is_test).filter(|(_, test)| !**test) {
        rows += 1.0;
        for ((sum, &value), &zero) in sums.iter_mut().zip(row).zip(origin) {
            let shifted = f64::from(value) - f64::from(zero);
            *sum = (sum.0 + shifted, sum.1 + shifted * shifted);
        }
    }
    let rows = rows.max(1.0);
    let moments = sums.iter().zip(origin).map(|(&(sum, squares), &zero)| {
        let mean = sum / rows;
        let std = (squares / rows - mean * mean).max(0.0).sqrt() as f32;
        let usable = std.is_finite() && std > f32::MIN_POSITIVE;
        ((mean + f64::from(zero)) as f32, if usable { std } else { 1.0 })
    });
    let (mean, std) = moments.unzip();
    Normalization { mean, std }
}

fn convert(name: &str, path: &Path, error: csv::Error) -> DatasetError {
    let what = error.to_string();
    match error.into_kind() {
        csv::ErrorKind::Io(source) if source.kind() == std::io::ErrorKind::NotFound => {
            DatasetError::Missing {
                dataset: name.to_owned(),
                looked_in: format!("no file {}", path.display()),
                hint: "give the path of a CSV file".to_owned(),
            }
        }
        csv::ErrorKind::Io(source) => DatasetError::Io { path: path.to_owned(), source },
        _ => DatasetError::damaged(path, what),
    }
}

fn shorten(field: &str) -> &str {
    &field[..field.floor_char_boundary(40)]
}
