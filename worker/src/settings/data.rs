//! The local data.

use clap::{ArgAction, Args};
use fl_app::{
    SettingError,
    setting::{dataset, filled, number, parse, whole},
};
use fl_datasets::{DatasetSpec, Part, Partition};
use fl_protocol::TaskBody;
use std::path::PathBuf;

/// As given.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Data")]
pub struct DataArgs {
    /// Data set: digits, shakespeare, fashion-mnist, mnist, idx:DIR, cifar10,
    /// images:DIR@WxH, csv:FILE, safetensors:FILE, text:FILE, bytes:FILE
    #[arg(long, env = "DATASET", default_value = "digits")]
    pub dataset: String,
    /// Folder of the data files [default: the data set's usual place]
    #[arg(long, env = "DATA_DIR")]
    pub data_dir: Option<String>,
    /// Columns of a csv file to predict as numbers, separated by commas, as on the master; with ?task=multilabel
    /// after them as labels that are 0 or 1 [default: the label column]
    #[arg(long, env = "TARGET")]
    pub target: Option<String>,
    /// At most so many local samples, 1 to 1000000000
    #[arg(long, env = "DATASET_SIZE", default_value_t = 50_000)]
    pub dataset_size: usize,
    /// How the samples are spread over workers: iid, dirichlet:ALPHA, shards:K
    #[arg(long, env = "PARTITION", default_value = "iid")]
    pub partition: String,
    /// This worker's part, 0 to NUM_PARTITIONS-1 [default: samples drawn from WORKER_ID]
    #[arg(long, env = "PARTITION_ID")]
    pub partition_id: Option<usize>,
    /// Parts of the data, 1 to 100000: disjoint and complete
    #[arg(long, env = "NUM_PARTITIONS")]
    pub num_partitions: Option<usize>,
    /// Leave the test part out of the training where the data have none of their own (every fifth sample; the last
    /// tenth of a text): it is what a master with the same file tests on [default: true with NUM_PARTITIONS, else false]
    #[arg(long, env = "HOLD_OUT", action = ArgAction::Set)]
    pub hold_out: Option<bool>,
    /// Share of the local samples that is held out of the training and on which this worker evaluates the models that
    /// the master asks it to, 0 to 0.9; 0 = it takes no part in evaluations [default: 0.1 if the master asks for
    /// evaluations (EVALUATE_EVERY), else 0]
    #[arg(long, env = "LOCAL_TEST", value_name = "SHARE")]
    pub local_test: Option<f64>,
}

/// Checked.
#[derive(Debug, Clone)]
pub struct DataSettings {
    /// `DATASET` and `TARGET`.
    pub dataset: DatasetSpec,
    /// `DATA_DIR`.
    pub data_dir: Option<PathBuf>,
    /// `DATASET_SIZE`: at most so many local samples.
    pub dataset_size: usize,
    /// `PARTITION`.
    pub partition: Partition,
    /// `PARTITION_ID` and `NUM_PARTITIONS`: an exact, disjoint part.
    pub share: Option<Share>,
    /// `HOLD_OUT`: which samples of the files are loaded.
    pub part: Part,
    /// `LOCAL_TEST`: share of the samples that is held out for evaluations.
    pub local_test: Option<f64>,
}

/// Share that is held out by default where the master asks for evaluations.
const DEFAULT_LOCAL_TEST: f64 = 0.1;

impl DataSettings {
    /// The share that is held out for evaluations under `task`.
    pub fn local_test(&self, task: &TaskBody) -> f64 {
        let default = if task.evaluate_every.is_some() { DEFAULT_LOCAL_TEST } else { 0.0 };
        self.local_test.unwrap_or(default)
    }
}

/// One of several disjoint parts of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// `PARTITION_ID`, from 0.
    pub id: usize,
    /// `NUM_PARTITIONS`.
    pub of: usize,
}

impl DataArgs {
    pub(super) fn check(self) -> Result<DataSettings, SettingError> {
        whole("DATASET_SIZE", self.dataset_size as u64, 1, 1_000_000_000)?;
        let share = share(self.partition_id, self.num_partitions)?;
        // Parts of one file: the master tests on the rest of the same file.
        let hold_out = self.hold_out.unwrap_or(share.is_some());
        if let Some(share) = self.local_test {
            number("LOCAL_TEST", share, 0.0, 0.9)?;
        }
        Ok(DataSettings {
            local_test: self.local_test,
            dataset: dataset(&self.dataset, self.target)?,
            data_dir: filled(self.data_dir).map(PathBuf::from),
            dataset_size: self.dataset_size,
            partition: parse("PARTITION", &self.partition)?,
            share,
            part: if hold_out { Part::Train } else { Part::AllForTraining },
        })
    }
}

fn share(id: Option<usize>, of: Option<usize>) -> Result<Option<Share>, SettingError> {
    match (id, of) {
        (Some(id), Some(of)) => {
            whole("NUM_PARTITIONS", of as u64, 1, 100_000)?;
            whole("PARTITION_ID", id as u64, 0, of as u64 - 1)?;
            Ok(Some(Share { id, of }))
        }
        (None, None) => Ok(None),
        (Some(id), None) => Err(SettingError::new("PARTITION_ID", id, "set NUM_PARTITIONS too")),
        (None, Some(of)) => Err(SettingError::new("NUM_PARTITIONS", of, "set PARTITION_ID too")),
    }
}

#[cfg(test)]
mod tests {
    use crate::Args;
    use clap::Parser;
    use fl_datasets::Part;

    #[test]
    fn a_table_of_its_own_trains_whole_and_a_shared_one_leaves_the_test_rows_out() {
        let part = |args: &[&str]| {
            let args = ["fl-worker", "--worker-id=w"].iter().chain(args);
            Args::parse_from(args).check().unwrap().data.part
        };
        let shared = ["--partition-id=0", "--num-partitions=2"];
        assert_eq!(part(&[]), Part::AllForTraining);
        assert_eq!(part(&["--hold-out=true"]), Part::Train);
        assert_eq!(part(&shared), Part::Train);
        assert_eq!(part(&[shared[0], shared[1], "--hold-out=false"]), Part::AllForTraining);
    }
}
