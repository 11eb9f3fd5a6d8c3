//! The publisher: one write a batch, confirmed when it is done.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use message::{Outcomes, Outgoing, Pipelining, PublishError, Publisher, wire};

use super::sink::{Kept, Sink, WriteError};

/// Writes messages as JSON lines to a file or to standard output.
///
/// A file is appended to, and created if it is not there (its directory is not). A batch is confirmed when it is written
/// and synced to disk. What a crash left of a last line is ended with a line feed first, so that it spoils no other.
/// Several processes may append to the same file. A batch that fails leaves nothing in a file.
pub struct FilePublisher {
    /// One batch at a time: lines never interleave.
    sink: Arc<Mutex<Sink>>,
    name: String,
}

impl FilePublisher {
    /// Appends to the file at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let name = path.display().to_string();
        FilePublisher { sink: Arc::new(Mutex::new(Sink::File { path, sync: true })), name }
    }

    /// Writes to standard output. Confirmed means that the process at the other end can read it, not that it has.
    pub fn standard_output() -> Self {
        let sink = Sink::StandardOutput { torn: false };
        FilePublisher { sink: Arc::new(Mutex::new(sink)), name: "standard output".to_owned() }
    }

    /// Confirms what the operating system has, without waiting for the disk: faster, and a power failure loses
    /// confirmed messages.
    pub fn without_sync(self) -> Self {
        if let Sink::File { sync, .. } = &mut *self.sink.lock().unwrap_or_else(PoisonError::into_inner) {
            *sync = false;
        }
        self
    }

    /// Runs on a thread that may block. It ends by itself even if nobody waits for it any more; the next batch waits
    /// for the lock.
    async fn blocking<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Sink) -> T + Send + 'static,
    ) -> Result<T, PublishError> {
        let sink = self.sink.clone();
        tokio::task::spawn_blocking(move || act(&mut sink.lock().unwrap_or_else(PoisonError::into_inner)))
            .await
            .map_err(|_| PublishError::Unknown(format!("writing to {} was cut short", self.name)))
    }
}

#[async_trait]
impl Publisher for FilePublisher {
    /// A batch is written in its order, and nothing after what failed.
    fn pipelining(&self) -> Pipelining {
        Pipelining::PerBatch
    }

    async fn publish(&self, batch: &[Outgoing], outcomes: Outcomes) {
        let mut lines = Vec::new();
        let mut ends = Vec::with_capacity(batch.len());
        for outgoing in batch {
            lines.extend_from_slice(wire::structured::encode(&outgoing.message).as_bytes());
            lines.push(b'\n');
            ends.push(lines.len());
        }
        let error = match self.blocking(move |sink| sink.write(&lines)).await {
            Ok(Ok(())) => return outcomes.confirm_all(),
            Err(error) => return outcomes.fail_all(error),
            Ok(Err(error)) => error,
        };
        let WriteError { source, kept } = error;
        let text = format!("{}: {source}", self.name);
        match kept {
            Kept::Nothing => outcomes.fail_all(PublishError::Unavailable(text)),
            Kept::Unknown => outcomes.fail_all(PublishError::Unknown(text)),
            Kept::First(written) => {
                let mut begin = 0;
                for (index, end) in ends.into_iter().enumerate() {
                    if end <= written {
                        outcomes.report(index, Ok(()));
                    } else if begin < written {
                        outcomes.report(index, Err(PublishError::Unknown(text.clone())));
                    }
                    begin = end;
                }
                outcomes.fail_all(PublishError::Unavailable(text));
            }
        }
    }

    async fn check(&self) -> Result<(), PublishError> {
        let checked = self.blocking(|sink| sink.check()).await?;
        checked.map_err(|source| PublishError::Unavailable(format!("{}: {source}", self.name)))
    }

    fn describe(&self) -> Option<String> {
        let sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        Some(match &*sink {
            Sink::File { path, .. } => {
                let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                format!("file:{}", path.display())
            }
            Sink::StandardOutput { .. } => "standard output".to_owned(),
        })
    }
}
