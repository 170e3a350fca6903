//! `memkv.Queue`: batches that run while their caller does something else.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use memkv_client::{
    Answers, Batch, ClientError, Completion, GetOutcome, Keys, Queue, Sink, Source, one_line,
};
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::arguments::{self, Buffers, PutArguments};
use crate::errors::of_queue;

/// How long the end of the process waits for what is under way.
const EXIT_PATIENCE: Duration = Duration::from_secs(5);
/// What `wait` waits for when nobody says how long.
const LONG: Duration = Duration::from_secs(3600);

/// Every queue there is. Locked only by a thread that has the interpreter's lock, so that no fork can find
/// it locked.
static QUEUES: Mutex<Vec<Weak<Queue>>> = Mutex::new(Vec::new());

/// The process ends: nobody waits for a queue any more.
static ENDING: AtomicBool = AtomicBool::new(false);

/// At the end of the process: what is under way reads and writes memory that is about to go.
#[pyfunction]
pub fn close_all(py: Python<'_>) {
    let queues = std::mem::take(&mut *QUEUES.lock().unwrap_or_else(PoisonError::into_inner));
    let queues: Vec<Arc<Queue>> = queues.iter().filter_map(Weak::upgrade).collect();
    ENDING.store(true, Ordering::Relaxed);
    py.detach(|| {
        let ends = Instant::now() + EXIT_PATIENCE;
        for queue in queues {
            if !queue.close_within(ends.saturating_duration_since(Instant::now())) {
                // Its workers end with the process; the memory stays theirs until then.
                std::mem::forget(queue);
            }
        }
    });
}

/// A batch that is done.
#[pyclass(name = "Completion", module = "memkv", frozen, get_all)]
pub struct PyCompletion {
    /// What ``submit`` gave.
    id: u64,
    /// ``put``, ``get``, ``exists``, ``match_prefix`` or ``delete``.
    op: &'static str,
    /// No key failed. A miss is no failure.
    ok: bool,
    /// The first failure, or nothing.
    error: String,
    /// As the call of the same name of Client has it: a list with an entry for each key, or a number.
    results: Py<PyAny>,
    /// Bytes of values moved.
    bytes: u64,
    /// Seconds from its submission until a worker took it.
    wait_seconds: f64,
    /// Seconds from then until it was done.
    transfer_seconds: f64,
}

#[pymethods]
impl PyCompletion {
    fn __repr__(&self) -> String {
        let PyCompletion { id, op, ok, bytes, .. } = self;
        format!("Completion(id={id}, op={op:?}, ok={ok}, bytes={bytes})")
    }
}

/// Batches of a client that run while their caller does something else.
///
/// ``submit_*`` never waits and gives an id; ``event_fd()`` is readable while there are completions, which
/// ``drain()`` fetches. Buffers belong to the queue until the completion of their batch is drained; memory
/// given as ``(address, length)`` must stay where it is until then. Every batch completes by its
/// ``timeout``, counted from its submission. A large batch travels over several connections. ``trace``, as
/// Client.traced has it, is what the batch belongs to.
#[pyclass(name = "Queue", module = "memkv", frozen, weakref)]
pub struct PyQueue {
    queue: Arc<Queue>,
    prefix: Vec<u8>,
}

impl PyQueue {
    /// Called with the interpreter's lock.
    pub fn new(queue: Arc<Queue>, prefix: Vec<u8>) -> PyQueue {
        let mut queues = QUEUES.lock().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|queue| queue.strong_count() > 0);
        queues.push(Arc::downgrade(&queue));
        PyQueue { queue, prefix }
    }

    /// Hands a batch over. The worker that this wakes may take the core of the caller, who must not keep the
    /// interpreter's lock meanwhile.
    pub fn submit(
        &self,
        py: Python<'_>,
        batch: Batch,
        timeout: Option<f64>,
        trace: Option<&str>,
    ) -> PyResult<u64> {
        let timeout = timeout.map(|time| arguments::duration("timeout", time)).transpose()?;
        let trace = trace.map(arguments::trace).transpose()?;
        py.detach(|| self.queue.submit_traced(batch, timeout, trace)).map_err(of_queue)
    }

    /// Many keys, each behind the prefix.
    pub fn keys(&self, keys: &Bound<'_, PyAny>) -> PyResult<Keys> {
        arguments::keys(&self.prefix, keys)
    }

    /// What is done. A worker may have what is asked for locked, and no core.
    pub fn completions(&self, py: Python<'_>) -> PyResult<Vec<Completion>> {
        py.detach(|| self.queue.drain()).map_err(of_queue)
    }

    /// Waits for what is under way.
    pub fn end(&self, py: Python<'_>) {
        py.detach(|| self.queue.close());
    }

    /// The file descriptor.
    pub fn descriptor(&self) -> PyResult<i32> {
        self.queue.event_fd().map_err(of_queue)
    }
}

/// A put of these values.
pub fn put(keys: Keys, values: Buffers, options: PutArguments) -> PyResult<Batch> {
    let options = options.options()?;
    let memory = values.memory.into_iter().map(|value| Box::new(value) as Source).collect();
    Ok(match values.counts {
        Some(counts) => Batch::Gather { keys, counts, pieces: memory, options },
        None => Batch::Put { keys, values: memory, options },
    })
}

/// A get into these buffers.
pub fn get(keys: Keys, buffers: Buffers) -> Batch {
    let memory = buffers.memory.into_iter().map(|buffer| Box::new(buffer) as Sink).collect();
    match buffers.counts {
        Some(counts) => Batch::Scatter { keys, counts, pieces: memory },
        None => Batch::Get { keys, buffers: memory },
    }
}

#[pymethods]
impl PyQueue {
    /// A file descriptor that is readable while there are completions. It is not to be read from; after a
    /// fork the child has another.
    fn event_fd(&self) -> PyResult<i32> {
        self.descriptor()
    }

    /// Stores values; see Client.put_batch.
    #[pyo3(signature = (keys, values, *, replace=false, ttl=None, durable=false, pin=None, timeout=None, trace=None))]
    #[allow(clippy::too_many_arguments, reason = "they are keywords where it is called")]
    fn submit_put(
        &self,
        keys: &Bound<'_, PyAny>,
        values: &Bound<'_, PyAny>,
        replace: bool,
        ttl: Option<f64>,
        durable: bool,
        pin: Option<f64>,
        timeout: Option<f64>,
        trace: Option<&str>,
    ) -> PyResult<u64> {
        let (py, keys) = (keys.py(), self.keys(keys)?);
        let values = arguments::sources(&keys, values)?;
        let options = PutArguments { replace, ttl, durable, pin, timeout };
        self.submit(py, put(keys, values, options)?, timeout, trace)
    }

    /// Reads values; see Client.get_batch_into.
    #[pyo3(signature = (keys, buffers, *, timeout=None, trace=None))]
    fn submit_get(
        &self,
        keys: &Bound<'_, PyAny>,
        buffers: &Bound<'_, PyAny>,
        timeout: Option<f64>,
        trace: Option<&str>,
    ) -> PyResult<u64> {
        let (py, keys) = (keys.py(), self.keys(keys)?);
        let buffers = arguments::sinks(&keys, buffers)?;
        self.submit(py, get(keys, buffers), timeout, trace)
    }

    /// Which keys are stored; see Client.exists.
    #[pyo3(signature = (keys, *, timeout=None, trace=None))]
    fn submit_exists(
        &self,
        keys: &Bound<'_, PyAny>,
        timeout: Option<f64>,
        trace: Option<&str>,
    ) -> PyResult<u64> {
        self.submit(keys.py(), Batch::Exists(self.keys(keys)?), timeout, trace)
    }

    /// How many keys at the front are stored; see Client.match_prefix.
    #[pyo3(signature = (keys, *, timeout=None, trace=None))]
    fn submit_match_prefix(
        &self,
        keys: &Bound<'_, PyAny>,
        timeout: Option<f64>,
        trace: Option<&str>,
    ) -> PyResult<u64> {
        self.submit(keys.py(), Batch::MatchPrefix(self.keys(keys)?), timeout, trace)
    }

    /// Removes blocks; see Client.delete.
    #[pyo3(signature = (keys, *, timeout=None, trace=None))]
    fn submit_delete(
        &self,
        keys: &Bound<'_, PyAny>,
        timeout: Option<f64>,
        trace: Option<&str>,
    ) -> PyResult<u64> {
        self.submit(keys.py(), Batch::Delete(self.keys(keys)?), timeout, trace)
    }

    /// The batches that are done; never waits.
    fn drain(&self, py: Python<'_>) -> PyResult<Vec<PyCompletion>> {
        let completions = self.completions(py)?;
        completions.into_iter().map(|completion| told(py, completion)).collect()
    }

    /// Waits until drain() would give something, at most ``timeout`` seconds; whether it would. With nothing
    /// under way it does not wait.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let time = match timeout {
            Some(0.0) => Duration::ZERO,
            Some(seconds) => arguments::duration("timeout", seconds)?,
            None => LONG,
        };
        py.detach(|| self.queue.wait(time)).map_err(of_queue)
    }

    /// Batches that are not drained yet.
    fn pending(&self) -> PyResult<usize> {
        self.queue.pending().map_err(of_queue)
    }

    /// Takes no more and waits for what is under way; its completions can still be drained.
    fn close(&self, py: Python<'_>) {
        self.end(py);
    }

    fn __enter__(this: Bound<'_, Self>) -> Bound<'_, Self> {
        this
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyAny>) {
        self.end(py);
    }
}

impl Drop for PyQueue {
    fn drop(&mut self) {
        // Whoever waits for its workers must not keep everybody else from the interpreter's lock.
        if !ENDING.load(Ordering::Relaxed) {
            Python::attach(|py| self.end(py));
        }
    }
}

/// A list in which every answer has its entry, and the first failure.
fn list<'py, T, V: IntoPyObject<'py>>(
    py: Python<'py>,
    answers: &[Result<T, ClientError>],
    entry: impl Fn(Option<&T>) -> V,
) -> PyResult<(Py<PyAny>, String)> {
    let list = PyList::empty(py);
    for answer in answers {
        list.append(entry(answer.as_ref().ok()))?;
    }
    let failure = answers.iter().find_map(|answer| answer.as_ref().err());
    Ok((list.into_any().unbind(), failure.map(|error| one_line(error)).unwrap_or_default()))
}

/// A completion as Python sees it. The memory of the batch is let go of here.
fn told(py: Python<'_>, completion: Completion) -> PyResult<PyCompletion> {
    let (op, (results, error)) = match &completion.answers {
        Answers::Put(answers) => ("put", list(py, answers, |answer| answer.is_some())?),
        Answers::Get(answers) => {
            let length = |answer: Option<&GetOutcome>| match answer {
                Some(GetOutcome::Hit { length, .. }) => Some(*length),
                _ => None,
            };
            ("get", list(py, answers, length)?)
        }
        Answers::Delete(answers) => {
            ("delete", list(py, answers, |answer| answer.copied().unwrap_or(false))?)
        }
        Answers::Exists(Ok(there)) => {
            ("exists", (PyList::new(py, there)?.into_any().unbind(), String::new()))
        }
        Answers::MatchPrefix(Ok(count)) => {
            ("match_prefix", (count.into_pyobject(py)?.into_any().unbind(), String::new()))
        }
        Answers::Exists(Err(error)) => {
            ("exists", (PyList::empty(py).into_any().unbind(), one_line(error)))
        }
        Answers::MatchPrefix(Err(error)) => {
            ("match_prefix", (0_usize.into_pyobject(py)?.into_any().unbind(), one_line(error)))
        }
    };
    Ok(PyCompletion {
        id: completion.ticket,
        op,
        ok: error.is_empty(),
        error,
        results,
        bytes: completion.bytes,
        wait_seconds: completion.waited.as_secs_f64(),
        transfer_seconds: completion.took.as_secs_f64(),
    })
}
