//! Tables: comma-separated numbers and a label column.
//!
//! The label column is the one named `label`, `class`, `target` or `y` (in any case), else the last.
//! The first row is a header if it has such a name or holds no number at all. Labels that are all
//! whole numbers are classes as they stand; others are numbered in the order of their names, which the data
//! set keeps, so that tables with different labels can be mapped to one numbering
//! ([`Dataset::class_map`]). Every fifth row of each class is test data. Columns are standardised with the
//! mean and deviation of the training rows.

use crate::{
    DataNames, Dataset, DatasetError, Features, Normalization, Part,
    limits::{MAX_CLASSES, MAX_FEATURE_BYTES, MAX_NAMES_BYTES, MAX_SAMPLE_FEATURES, MAX_SAMPLES},
    split,
};
use csv::{ReaderBuilder, StringRecord, Trim};
use std::{collections::HashMap, path::Path};

const LABEL_NAMES: [&str; 4] = ["label", "class", "target", "y"];

pub(crate) fn load(name: &str, path: &Path, part: Part) -> Result<Dataset, DatasetError> {
    let table = read(name, path)?;
    let Classes { labels, num_classes, names } = number_classes(&table, path)?;
    let Table { width, values, columns, .. } = table;
    let normalization = standardise(&values, width, &split::fifths(&labels));
    let (train, test) = split::every_fifth_is_test(Features::F32(values), labels, width, part);
    let names = DataNames { labels: names, features: columns };
    let name = name.to_owned();
    Ok(Dataset { name, names, input_shape: vec![width], num_classes, normalization, train, test })
}

/// The rows of a file. Labels are indices into `names`.
struct Table {
    width: usize,
    /// Names of the feature columns; empty without a header, or beyond [`MAX_NAMES_BYTES`].
    columns: Vec<String>,
    values: Vec<f32>,
    labels: Vec<u32>,
    names: Vec<String>,
}

fn read(name: &str, path: &Path) -> Result<Table, DatasetError> {
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
    let label_column = label_column(&record);
    let mut table = Table {
        width: record.len() - 1,
        columns: Vec::new(),
        values: Vec::new(),
        labels: Vec::new(),
        names: Vec::new(),
    };
    if table.width == 0 || table.width > MAX_SAMPLE_FEATURES {
        return Err(DatasetError::unusable(path, "it needs a label column and at least one other column"));
    }
    let mut ids = HashMap::new();
    let mut more = true;
    if is_header(&record) {
        table.columns = column_names(&record, label_column);
        more = next(&mut record)?;
    }
    while more {
        table.push(&record, label_column, &mut ids, path)?;
        more = next(&mut record)?;
    }
    match table.labels.is_empty() {
        true => Err(DatasetError::unusable(path, "it holds no rows below its header")),
        false => Ok(table),
    }
}

impl Table {
    fn push(
        &mut self,
        record: &StringRecord,
        label_column: usize,
        ids: &mut HashMap<String, u32>,
        path: &Path,
    ) -> Result<(), DatasetError> {
        let line = record.position().map_or(0, |position| position.line());
        if self.labels.len() == MAX_SAMPLES || (self.values.len() + self.width) * 4 > MAX_FEATURE_BYTES {
            return Err(DatasetError::too_large(
                path,
                format!("line {line} is beyond {MAX_FEATURE_BYTES} bytes"),
            ));
        }
        for (column, field) in record.iter().enumerate() {
            if column == label_column {
                let label = self.label_id(field, ids).ok_or_else(|| {
                    DatasetError::unusable(path, format!("it has more than {MAX_CLASSES} different labels"))
                })?;
                self.labels.push(label);
                continue;
            }
            let value = field.parse::<f32>().ok().filter(|value| value.is_finite()).ok_or_else(|| {
                let what =
                    format!("line {line}, column {}: `{}` is not a number", column + 1, shorten(field));
                DatasetError::unusable(path, what)
            })?;
            self.values.push(value);
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

fn column_names(header: &StringRecord, label_column: usize) -> Vec<String> {
    let names: Vec<String> = header
        .iter()
        .enumerate()
        .filter(|(column, _)| *column != label_column)
        .map(|(_, name)| name.to_owned())
        .collect();
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
