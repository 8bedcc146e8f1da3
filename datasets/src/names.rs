//! Class and column names: maps a data set's class indices to the model's.

use crate::{DataNames, Dataset, DatasetError, Split};
use std::collections::{BTreeSet, HashMap};

/// Names that a message lists at most.
const LISTED: usize = 8;

impl Dataset {
    /// For each class of this data set its class in a model with these names; `None` if both number alike.
    ///
    /// A data set may lack some of the model's classes. A class without a name is looked up by its number.
    ///
    /// # Errors
    /// [`DatasetError::UnknownLabels`] if a label is not among the model's, or if only this data set names its
    /// classes; [`DatasetError::Columns`] if both have column names and they differ.
    pub fn class_map(&self, model: &DataNames) -> Result<Option<Vec<u32>>, DatasetError> {
        self.check_columns(&model.features)?;
        if model.labels == self.names.labels {
            return Ok(None);
        }
        let classes: HashMap<&str, u32> = model.labels.iter().map(String::as_str).zip(0..).collect();
        let mut map = vec![0; self.num_classes];
        let mut unknown = Vec::new();
        for class in self.present_classes() {
            let label = self.label(class);
            match classes.get(label.as_str()) {
                Some(known) => map[class as usize] = *known,
                None => unknown.push(label),
            }
        }
        if unknown.is_empty() {
            return Ok(Some(map));
        }
        let all: BTreeSet<&String> = model.labels.iter().chain(&unknown).collect();
        Err(DatasetError::UnknownLabels {
            dataset: self.name.clone(),
            unknown: list(&unknown),
            known: match model.labels.is_empty() {
                true => "no names for its classes, only numbers".to_owned(),
                false => list(&model.labels),
            },
            all: all.into_iter().map(String::as_str).collect::<Vec<_>>().join(","),
        })
    }

    /// Gives the classes these names, in this order; there may be more of them than the data have. Names
    /// that are the numbers 0, 1, 2 ... only set the number of classes.
    ///
    /// # Errors
    /// [`DatasetError::UnknownLabels`] if a label is not among them.
    pub fn set_labels(&mut self, labels: Vec<String>) -> Result<(), DatasetError> {
        let num_classes = labels.len();
        let numbers = labels.iter().enumerate().all(|(class, label)| *label == class.to_string());
        if numbers && self.names.labels.is_empty() && self.num_classes <= num_classes {
            self.num_classes = num_classes;
            return Ok(());
        }
        let names = DataNames { labels, features: self.names.features.clone() };
        if let Some(map) = self.class_map(&names)? {
            self.train.renumber(&map);
            self.test.renumber(&map);
        }
        self.num_classes = num_classes;
        self.names = names;
        Ok(())
    }

    fn check_columns(&self, model: &[String]) -> Result<(), DatasetError> {
        let own = &self.names.features;
        if model.is_empty() || own.is_empty() || model.len() != own.len() {
            // A different number of columns is refused elsewhere, as a different input shape.
            return Ok(());
        }
        match (1..).zip(own.iter().zip(model)).find(|(_, (own, model))| own != model) {
            Some((column, (found, expected))) => Err(DatasetError::Columns {
                dataset: self.name.clone(),
                column,
                found: found.clone(),
                expected: expected.clone(),
            }),
            None => Ok(()),
        }
    }

    /// The named classes; without names, the classes that occur in the data.
    fn present_classes(&self) -> Vec<u32> {
        if !self.names.labels.is_empty() {
            return (0..self.names.labels.len() as u32).collect();
        }
        let both = self.train.labels().iter().chain(self.test.labels());
        both.copied().collect::<BTreeSet<u32>>().into_iter().collect()
    }

    fn label(&self, class: u32) -> String {
        self.names.labels.get(class as usize).cloned().unwrap_or_else(|| class.to_string())
    }
}

impl Split {
    fn renumber(&mut self, map: &[u32]) {
        self.labels_mut().iter_mut().for_each(|label| *label = map[*label as usize]);
    }
}

fn list(names: &[String]) -> String {
    let mut text = names.iter().take(LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > LISTED {
        text += &format!(" and {} more", names.len() - LISTED);
    }
    text
}
