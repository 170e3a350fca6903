//! `memkv.NativeConnector`: the surface that LMCache expects of a native connector.

use std::sync::Arc;

use memkv_client::{Answers, Batch, Client, ClientError, GetOutcome, Queue, one_line};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::arguments::{self, PutArguments};
use crate::errors::{exception, of_queue};
use crate::queue::{self, PyQueue};

/// A batch that is done: id, whether no key failed, the first failure, and per key whether it is there.
type Told = (u64, bool, String, Vec<bool>);

/// What LMCache's native connectors have: batches by key and memory, one event fd, completions as tuples.
///
/// Takes the arguments of Client, and ``workers``, ``ttl`` and ``pin`` (seconds) of what it stores. A set is
/// done when every value is stored; a get when every buffer was filled exactly: a value of another length is
/// a miss.
#[pyclass(name = "NativeConnector", module = "memkv", frozen, weakref, subclass)]
pub struct NativeConnector {
    queue: PyQueue,
    client: Client,
    options: PutArguments,
}

#[pymethods]
impl NativeConnector {
    #[new]
    #[pyo3(signature = (servers=None, *, workers=4, ttl=None, pin=None, prefix=None, **arguments))]
    fn new(
        py: Python<'_>,
        servers: Option<&Bound<'_, PyAny>>,
        workers: usize,
        ttl: Option<f64>,
        pin: Option<f64>,
        prefix: Option<&Bound<'_, PyAny>>,
        arguments: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<NativeConnector> {
        let mut config = arguments::config(servers, arguments)?;
        // A lookup is not to wait for a connection that moves blocks.
        config.num_connections = config.num_connections.max(workers + 1);
        let options = PutArguments { ttl, pin, ..PutArguments::default() };
        options.options()?;
        let client = Client::new(config).map_err(|error| exception(py, &error))?;
        let queue = Arc::new(Queue::new(&client, workers).map_err(of_queue)?);
        let queue = PyQueue::new(queue, arguments::prefix(prefix)?);
        Ok(NativeConnector { queue, client, options })
    }

    /// Readable while there are completions.
    fn event_fd(&self) -> PyResult<i32> {
        self.queue.descriptor()
    }

    /// Stores a value under each key.
    fn submit_batch_set(&self, keys: &Bound<'_, PyAny>, bufs: &Bound<'_, PyAny>) -> PyResult<u64> {
        let (py, keys) = (keys.py(), self.queue.keys(keys)?);
        let values = arguments::sources(&keys, bufs)?;
        self.queue.submit(py, queue::put(keys, values, self.options)?, None, None)
    }

    /// Fills a buffer for each key.
    fn submit_batch_get(&self, keys: &Bound<'_, PyAny>, bufs: &Bound<'_, PyAny>) -> PyResult<u64> {
        let (py, keys) = (keys.py(), self.queue.keys(keys)?);
        let buffers = arguments::sinks(&keys, bufs)?;
        self.queue.submit(py, queue::get(keys, buffers), None, None)
    }

    /// Looks keys up.
    fn submit_batch_exists(&self, keys: &Bound<'_, PyAny>) -> PyResult<u64> {
        self.queue.submit(keys.py(), Batch::Exists(self.queue.keys(keys)?), None, None)
    }

    /// Removes blocks.
    fn submit_batch_delete(&self, keys: &Bound<'_, PyAny>) -> PyResult<u64> {
        self.queue.submit(keys.py(), Batch::Delete(self.queue.keys(keys)?), None, None)
    }

    /// Per batch that is done ``(id, ok, error, per key)``.
    fn drain_completions(&self, py: Python<'_>) -> PyResult<Vec<Told>> {
        let told = |completion: memkv_client::Completion| {
            let mut error = String::new();
            let per_key = match &completion.answers {
                Answers::Put(answers) => flags(answers, &mut error, |_, _| true),
                Answers::Get(answers) => {
                    let rooms = &completion.lengths;
                    flags(answers, &mut error, |at, outcome| match outcome {
                        GetOutcome::Hit { length, .. } => *length == rooms[at],
                        GetOutcome::Miss(_) => false,
                    })
                }
                Answers::Delete(answers) => flags(answers, &mut error, |_, there| *there),
                Answers::Exists(Ok(there)) => there.clone(),
                Answers::Exists(Err(failure)) | Answers::MatchPrefix(Err(failure)) => {
                    error = one_line(failure);
                    Vec::new()
                }
                Answers::MatchPrefix(Ok(_)) => Vec::new(),
            };
            (completion.ticket, error.is_empty(), error, per_key)
        };
        Ok(self.queue.completions(py)?.into_iter().map(told).collect())
    }

    /// What it has done; see Client.stats.
    fn stats(&self, py: Python<'_>) -> PyResult<Py<PyDict>> {
        crate::counters::of(py, &self.client)
    }

    /// Takes no more and waits for what is under way.
    fn close(&self, py: Python<'_>) {
        self.queue.end(py);
    }
}

/// Per answer whether it is good, and the first failure.
fn flags<T>(
    answers: &[Result<T, ClientError>],
    error: &mut String,
    good: impl Fn(usize, &T) -> bool,
) -> Vec<bool> {
    if let Some(failure) = answers.iter().find_map(|answer| answer.as_ref().err()) {
        *error = one_line(failure);
    }
    let answers = answers.iter().enumerate();
    answers.map(|(at, answer)| answer.as_ref().is_ok_and(|answer| good(at, answer))).collect()
}
