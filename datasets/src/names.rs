//! Class, column, target and character names: maps a data set's class indices to the model's.

use crate::{DataNames, Dataset, DatasetError, Split};
use fl_protocol::Task;
use std::collections::{BTreeSet, HashMap};

/// Names that a message lists at most.
const LISTED: usize = 8;

impl Dataset {
    /// For each class (or character) of this data set its class in a model with these names; `None` if both number
    /// alike. [`Samples::renumber`](crate::Samples::renumber) applies it.
    ///
    /// A data set may lack some of the model's classes. A class without a name is looked up by its number.
    ///
    /// # Errors
    /// [`DatasetError::UnknownLabels`] if a label is not among the model's, or if only this data set names its
    /// classes; [`DatasetError::UnknownCharacters`] and [`DatasetError::Alphabet`] likewise for a text;
    /// [`DatasetError::Outputs`] if the target columns differ; [`DatasetError::Columns`] if both have column names
    /// and they differ.
    pub fn class_map(&self, model: &DataNames) -> Result<Option<Vec<u32>>, DatasetError> {
        self.check_columns(&model.features)?;
        if model.labels == self.names.labels {
            return Ok(None);
        }
        match self.task {
            Task::Classification { .. } => self.map_classes(&model.labels),
            Task::LanguageModel => self.map_characters(&model.labels),
            Task::Regression { .. } | Task::Multilabel { .. } => self.check_outputs(&model.labels),
        }
    }

    fn map_classes(&self, model: &[String]) -> Result<Option<Vec<u32>>, DatasetError> {
        let (map, unknown) = self.look_up(model);
        if unknown.is_empty() {
            return Ok(Some(map));
        }
        let all: BTreeSet<&String> = model.iter().chain(&unknown).collect();
        Err(DatasetError::UnknownLabels {
            dataset: self.name.clone(),
            unknown: list(&unknown),
            known: match model.is_empty() {
                true => "no names for its classes, only numbers".to_owned(),
                false => list(model),
            },
            all: all.into_iter().map(String::as_str).collect::<Vec<_>>().join(","),
        })
    }

    fn map_characters(&self, model: &[String]) -> Result<Option<Vec<u32>>, DatasetError> {
        if model.is_empty() || self.names.labels.is_empty() {
            let of = |characters: bool| if characters { "characters" } else { "bytes" };
            return Err(DatasetError::Alphabet {
                dataset: self.name.clone(),
                data: of(!self.names.labels.is_empty()),
                model: of(!model.is_empty()),
            });
        }
        let (map, unknown) = self.look_up(model);
        match unknown.is_empty() {
            true => Ok(Some(map)),
            false => Err(DatasetError::UnknownCharacters {
                dataset: self.name.clone(),
                unknown: list(&unknown.iter().map(|c| format!("`{}`", c.escape_debug())).collect::<Vec<_>>()),
            }),
        }
    }

    /// Outputs are not reordered: their columns must stand as the model's do. A side without names is not compared.
    fn check_outputs(&self, model: &[String]) -> Result<Option<Vec<u32>>, DatasetError> {
        let own = &self.names.labels;
        if own.is_empty() || model.is_empty() {
            return Ok(None);
        }
        Err(DatasetError::Outputs {
            dataset: self.name.clone(),
            found: own.join(","),
            expected: model.join(","),
        })
    }

    /// The model's class of each class, and the labels that the model lacks.
    fn look_up(&self, model: &[String]) -> (Vec<u32>, Vec<String>) {
        let classes: HashMap<&str, u32> = model.iter().map(String::as_str).zip(0..).collect();
        let mut map = vec![0; self.num_classes()];
        let mut unknown = Vec::new();
        for class in self.present_classes() {
            let label = self.label(class);
            match classes.get(label.as_str()) {
                Some(known) => map[class as usize] = *known,
                None => unknown.push(label),
            }
        }
        (map, unknown)
    }

    /// Gives the classes these names, in this order; there may be more of them than the data have. Names
    /// that are the numbers 0, 1, 2 ... only set the number of classes.
    ///
    /// # Errors
    /// [`DatasetError::UnknownLabels`] if a label is not among them, [`DatasetError::NoClasses`] if the task is no
    /// classification.
    pub fn set_labels(&mut self, labels: Vec<String>) -> Result<(), DatasetError> {
        if !matches!(self.task, Task::Classification { .. }) {
            return Err(DatasetError::NoClasses { dataset: self.name.clone(), task: self.task.name() });
        }
        let num_classes = labels.len();
        let numbers = labels.iter().enumerate().all(|(class, label)| *label == class.to_string());
        if numbers && self.names.labels.is_empty() && self.num_classes() <= num_classes {
            self.task = Task::classes(num_classes);
            return Ok(());
        }
        let names = DataNames { labels, features: self.names.features.clone() };
        if let Some(map) = self.class_map(&names)? {
            self.train.renumber(&map);
            self.test.renumber(&map);
        }
        self.task = Task::classes(num_classes);
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
