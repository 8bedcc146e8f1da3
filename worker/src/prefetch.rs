//! The next round's model, pulled while the last update is on its way.

use crate::client::{CallError, MasterClient, ServedModel};
use bytes::Bytes;
use tokio::task::JoinSet;

/// A model that is being pulled, if any. Dropping it ends the call.
#[derive(Debug, Default)]
pub(crate) struct Prefetch {
    /// The call in flight.
    call: JoinSet<Result<ServedModel, CallError>>,
    /// The round that the call waits for.
    awaited: u64,
    /// The round that this worker trained last.
    trained: Option<u64>,
}

impl Prefetch {
    /// Begins to wait for the model after `round`, which this worker has just trained.
    ///
    /// A worker that does not take part in every round would pull models in vain: there must be two
    /// rounds in a row.
    pub(crate) fn start(&mut self, client: &MasterClient, round: u64) {
        self.call.abort_all();
        self.call = JoinSet::new();
        let in_a_row = self.trained.replace(round).is_some_and(|last| last + 1 == round);
        if in_a_row {
            self.awaited = round + 1;
            let client = client.clone();
            self.call.spawn(async move { client.next_global(round + 1).await });
        }
    }

    /// The model of `round`, which exists at the master, if it was pulled ahead.
    pub(crate) async fn take(&mut self, round: u64) -> Option<Bytes> {
        // A master that was set back repeats a round: the call would wait for one that is far off.
        if round < self.awaited {
            self.call.abort_all();
            return None;
        }
        // A call that failed is no loss: the caller pulls the model itself.
        let model = self.call.join_next().await?.ok()?.ok()?;
        (model.round == round).then_some(model.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Args;
    use clap::Parser;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    /// A master whose newest model is that of round 5, and that answers for no later one.
    async fn client_of_a_master() -> MasterClient {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = format!("--master-addr=http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let mut request = [0; 4096];
                    let read = stream.read(&mut request).await.unwrap();
                    let request = String::from_utf8_lossy(&request[..read]).into_owned();
                    if request.contains("min_round=5&") {
                        let answer = b"HTTP/1.1 200 OK\r\nfl-round: 5\r\ncontent-length: 5\r\n\r\nmodel";
                        stream.write_all(answer).await.unwrap();
                    }
                    let _ = stream.read(&mut [0]).await;
                });
            }
        });
        let config = Args::parse_from(["fl-worker", "--worker-id=w", &addr]).check().unwrap();
        MasterClient::new(&config.master, None).unwrap()
    }

    #[tokio::test]
    async fn the_second_round_in_a_row_pulls_the_next_model() {
        let client = client_of_a_master().await;
        let mut prefetch = Prefetch::default();
        prefetch.start(&client, 3);
        assert_eq!(prefetch.take(4).await, None, "one round is not yet a row");
        prefetch.start(&client, 4);
        assert_eq!(prefetch.take(5).await.as_deref(), Some(&b"model"[..]));
        assert_eq!(prefetch.take(5).await, None, "a model is taken once");
    }

    #[tokio::test]
    async fn a_model_of_another_round_is_not_taken() {
        let client = client_of_a_master().await;
        let mut prefetch = Prefetch::default();
        prefetch.start(&client, 3);
        prefetch.start(&client, 4);
        assert_eq!(prefetch.take(6).await, None, "the master is further than the model that came");
        prefetch.start(&client, 5);
        assert_eq!(prefetch.take(5).await, None, "the call for round 6 would wait in vain");
    }
}
