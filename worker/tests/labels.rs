//! Tables of different nodes: each worker numbers its classes as the model does, or does not train.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use clap::Parser;
use fl_datasets::{Dataset, DatasetSpec, Part, Samples};
use fl_master::Master;
use fl_model::{Backend, Batch, Evaluation, GlobalModel, ModelSpec};
use fl_protocol::{TaskBody, Update};
use fl_worker::{Args, Config, LocalClient, Plan, Sent, StartingPoint, WorkerError};
use std::{fs, future::pending, ops::ControlFlow, path::Path, sync::Arc, time::Duration};
use tokio::time::timeout;

/// A table of two numbers and a label; every label has a corner of its own.
fn table(dir: &Path, name: &str, labels: &[&str], rows: usize) -> DatasetSpec {
    let corner = |label: &str| match label {
        "cat" => (-1.0, 0.0),
        "dog" => (1.0, 0.0),
        _ => (0.0, 2.0),
    };
    let mut text = "width,height,label\n".to_owned();
    for row in 0..rows {
        for label in labels {
            let (x, y) = corner(label);
            let noise = |salt: usize| (((row + 1) * salt * 7919) % 100) as f32 / 250.0 - 0.2;
            text += &format!("{},{},{label}\n", x + noise(3), y + noise(11));
        }
    }
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    DatasetSpec::csv(path)
}

fn load(spec: &DatasetSpec, part: Part) -> Dataset {
    fl_datasets::load(spec, None, part).unwrap()
}

fn config(args: &[String]) -> Config {
    let own = ["fl-worker", "--worker-id=w", "--mem-mb=0"].map(str::to_owned);
    Args::parse_from(own.iter().chain(args)).check().unwrap()
}

fn model(data: &Dataset) -> GlobalModel {
    let spec = ModelSpec::classifier("softmax", data.input_shape(), data.num_classes(), 0).unwrap();
    let parameters = vec![0.0; spec.num_parameters()];
    let (normalization, names) = (data.normalization.clone(), data.names.clone());
    GlobalModel {
        round: 0,
        network: spec.into(),
        normalization,
        names,
        parameters,
        buffers: fl_model::Buffers::default(),
    }
}

#[test]
fn workers_with_different_labels_train_one_model() {
    let dir = tempfile::tempdir().unwrap();
    let test = load(&table(dir.path(), "all.csv", &["cat", "dog", "fox"], 25), Part::Test);
    let mut global = model(&test);
    let config = config(&["--lr=0.5".to_owned(), "--quantizer=none".to_owned()]);
    let mut clients = [["cat", "dog"], ["dog", "fox"]].map(|labels| {
        let spec = table(dir.path(), &format!("{}.csv", labels.concat()), &labels, 40);
        let data = Arc::new(load(&spec, config.data.part));
        assert_eq!(data.train.len(), 80, "every row of a worker's own table trains");
        LocalClient::new(&config, data, &global).unwrap()
    });
    let layout = global.network.layout().into_owned();
    for round in 0..40 {
        let mut mean = vec![0.0f32; layout.parameters()];
        for client in &mut clients {
            let from = StartingPoint { round, parameters: &global.parameters, control: None };
            let plan = Plan::new(&config, &TaskBody::train(round)).unwrap();
            let update = client.train(&from, &plan, || ControlFlow::Continue(())).unwrap().unwrap();
            client.settle(Sent::Update);
            Update::parse(&update.body, &layout).unwrap().for_each_chunk(|at, values| {
                mean[at..].iter_mut().zip(values).for_each(|(sum, v)| *sum += v / 2.0);
            });
        }
        global.parameters.iter_mut().zip(&mean).for_each(|(w, delta)| *w += delta);
    }
    let mut learner = global.network.known().unwrap().learner(Backend::Auto, 1).unwrap();
    learner.load(&global.parameters);
    let mut samples = Samples::new();
    let all: Vec<u32> = (0..test.test.len() as u32).collect();
    test.test.gather(&all, &global.normalization, &mut samples);
    let accuracy =
        Evaluation::from(learner.evaluate(Batch::new(samples.inputs(), samples.targets())).unwrap())
            .accuracy
            .unwrap();
    assert!(
        accuracy > 0.95,
        "{accuracy}: with labels numbered by each worker, a dog is a cat to one of them"
    );
}

#[test]
fn a_label_that_the_model_lacks_is_told_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut master = load(&table(dir.path(), "master.csv", &["cat", "dog"], 10), Part::Test);
    let own = Arc::new(load(&table(dir.path(), "own.csv", &["dog", "fox"], 10), Part::AllForTraining));
    let refusal = |master: &Dataset| match LocalClient::new(&config(&[]), own.clone(), &model(master)) {
        Ok(_) => "fine".to_owned(),
        Err(error) => {
            let error = WorkerError::from(error);
            assert_eq!(error.exit() as u8, 66);
            error.to_string()
        }
    };
    let text = refusal(&master);
    assert!(text.contains("labels fox") && text.contains("LABELS=cat,dog,fox"), "{text}");
    master.set_labels(["cat", "dog", "fox"].map(str::to_owned).to_vec()).unwrap();
    assert_eq!(refusal(&master), "fine");
    master.names.features.swap(0, 1);
    let text = refusal(&master);
    assert!(text.contains("column 1") && text.contains("`width`") && text.contains("`height`"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_masters_list_of_labels_reaches_the_workers() {
    let dir = tempfile::tempdir().unwrap();
    let at_master = table(dir.path(), "master.csv", &["cat", "dog"], 20);
    let own = table(dir.path(), "own.csv", &["dog", "fox"], 20);
    let run = |labels: Option<&'static str>, state: &'static str| {
        let args = [
            "fl-master".to_owned(),
            "--bind=127.0.0.1:0".to_owned(),
            "--model=softmax".to_owned(),
            format!("--dataset={at_master}"),
            format!("--state-dir={}", dir.path().join(state).display()),
            "--agg-min-clients=1".to_owned(),
            "--rounds=2".to_owned(),
        ];
        let own = own.clone();
        let labels = labels.map(|labels| format!("--labels={labels}"));
        let config = fl_master::Args::parse_from(args.into_iter().chain(labels)).check().unwrap();
        async move {
            let master = Master::start(config, None).await.unwrap();
            let args = [format!("--master-addr=http://{}", master.local_addr()), format!("--dataset={own}")];
            let work = fl_worker::run(self::config(&args), None, pending(), None);
            let ended = timeout(Duration::from_secs(60), work).await.unwrap();
            master.shutdown().await.unwrap();
            ended
        }
    };
    let error = run(None, "two").await.unwrap_err();
    assert_eq!(error.exit() as u8, 66);
    assert!(error.to_string().contains("fox"), "{error}");
    assert_eq!(run(Some("cat,dog,fox"), "three").await.unwrap().rounds, 2);
}
