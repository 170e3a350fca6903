//! `memkv.Client`: calls that wait.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use memkv_client::{
    Client, ClientError, GatherItem, GetItem, GetOutcome, Keys, PutItem, PutOptions, PutOutcome,
    Queue, ScatterItem, StatId,
};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::arguments::{self, Buffers, PutArguments};
use crate::buffer::Memory;
use crate::counters;
use crate::errors::{Closed, exception, of_queue};
use crate::queue::PyQueue;

/// A client of one or more memkv servers.
///
/// ``servers`` is a list of ``host[:port][*weight]`` or one text with commas. What is not given comes from
/// the ``MEMKV_*`` variables, then the YAML file ``config`` (or ``MEMKV_CONFIG``), then defaults:
/// ``namespace``, ``auth_key``, ``key_id``, ``num_connections``, ``connect_timeout`` and
/// ``request_timeout`` (seconds), ``transport``. ``prefix`` stands before every key.
///
/// Making one talks to nobody and starts no thread. Calls may come from any thread, give the interpreter's
/// lock away, and end by ``timeout`` or ``request_timeout``. After ``fork`` the child talks over connections
/// of its own.
#[pyclass(name = "Client", module = "memkv", frozen, weakref)]
pub struct PyClient {
    client: Client,
    prefix: Vec<u8>,
    closed: AtomicBool,
    queues: Mutex<Vec<Weak<Queue>>>,
}

impl PyClient {
    /// The engine, whose calls end after `timeout` seconds.
    fn engine(&self, timeout: Option<f64>) -> PyResult<Client> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(Closed::new_err("the client is closed"));
        }
        match timeout {
            None => Ok(self.client.clone()),
            Some(seconds) => {
                let time = arguments::duration("timeout", seconds)?;
                Ok(self.client.until(Instant::now() + time))
            }
        }
    }
}

/// Puts the failures of a batch where the caller asked for them.
fn tell(
    py: Python<'_>,
    errors: Option<&Bound<'_, PyList>>,
    at: usize,
    error: &ClientError,
) -> PyResult<()> {
    match errors {
        Some(errors) => errors.append((at, exception(py, error).into_value(py))),
        None => Ok(()),
    }
}

/// Puts values, wherever their pieces are.
fn store(
    engine: &Client,
    keys: &Keys,
    values: &Buffers,
    options: PutOptions,
    together: bool,
) -> Vec<Result<PutOutcome, ClientError>> {
    let bytes: Vec<&[u8]> = values.memory.iter().map(Memory::as_ref).collect();
    let keys = keys.slices();
    if let Some(counts) = &values.counts {
        let values = keys.into_iter().zip(Buffers::ranges(counts));
        let items: Vec<GatherItem<'_>> = values
            .map(|(key, range)| GatherItem { key, pieces: &bytes[range], options, parent: None })
            .collect();
        return match together {
            true => of_group(engine.put_gathered_group(&items), items.len()),
            false => engine.put_gathered(&items),
        };
    }
    let values = keys.into_iter().zip(bytes);
    let items: Vec<PutItem<'_>> =
        values.map(|(key, value)| PutItem { key, value, options, parent: None }).collect();
    match together {
        true => of_group(engine.put_group(&items), items.len()),
        false => engine.put_batch(&items),
    }
}

/// Nothing of a group that failed is there, so all of its keys have its failure.
fn of_group(
    result: Result<Vec<PutOutcome>, ClientError>,
    count: usize,
) -> Vec<Result<PutOutcome, ClientError>> {
    match result {
        Ok(outcomes) => outcomes.into_iter().map(Ok).collect(),
        Err(error) => vec![Err(error); count],
    }
}

/// Gets values, wherever their pieces go.
fn read(
    engine: &Client,
    keys: &Keys,
    buffers: &mut Buffers,
) -> Vec<Result<GetOutcome, ClientError>> {
    let mut bytes = buffers.memory.iter_mut().map(Memory::as_mut);
    let keys = keys.slices();
    if let Some(counts) = &buffers.counts {
        let items = keys.into_iter().zip(counts);
        let mut items: Vec<ScatterItem<'_>> = items
            .map(|(key, count)| {
                let pieces = bytes.by_ref().take(*count).collect();
                ScatterItem { key, offset: 0, pieces }
            })
            .collect();
        return engine.get_scattered(&mut items);
    }
    let items = keys.into_iter().zip(bytes);
    let mut items: Vec<GetItem<'_>> =
        items.map(|(key, buf)| GetItem { key, offset: 0, buf }).collect();
    engine.get_batch(&mut items)
}

#[pymethods]
impl PyClient {
    #[new]
    #[pyo3(signature = (servers=None, *, prefix=None, **arguments))]
    fn new(
        py: Python<'_>,
        servers: Option<&Bound<'_, PyAny>>,
        prefix: Option<&Bound<'_, PyAny>>,
        arguments: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyClient> {
        let config = arguments::config(servers, arguments)?;
        let prefix = arguments::prefix(prefix)?;
        let client = Client::new(config).map_err(|error| exception(py, &error))?;
        let (closed, queues) = (AtomicBool::new(false), Mutex::default());
        Ok(PyClient { client, prefix, closed, queues })
    }

    /// Stores a value. True: it is stored now; False: a value of its length was there and stays.
    ///
    /// ``replace`` stores it whatever is there, ``ttl`` and ``pin`` are seconds, ``durable`` waits until it
    /// survives a power cut, ``parent`` is the key of the block that it is useless without.
    #[pyo3(signature = (key, value, *, replace=false, ttl=None, durable=false, pin=None, parent=None,
                        timeout=None))]
    #[allow(clippy::too_many_arguments, reason = "they are keywords where it is called")]
    fn put(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        value: &Bound<'_, PyAny>,
        replace: bool,
        ttl: Option<f64>,
        durable: bool,
        pin: Option<f64>,
        parent: Option<&Bound<'_, PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<bool> {
        let engine = self.engine(timeout)?;
        let options = PutArguments { replace, ttl, durable, pin, timeout }.options()?;
        let key = arguments::key(&self.prefix, key)?;
        let parent = parent.map(|parent| arguments::key(&self.prefix, parent)).transpose()?;
        let value = Memory::readable(value)?;
        let result = py.detach(|| {
            let (key, value) = (key.slices()[0], value.as_ref());
            match &parent {
                Some(parent) => engine.put_after(parent.slices()[0], key, value, &options),
                None => engine.put(key, value, &options),
            }
        });
        match result {
            Ok(outcome) => Ok(matches!(outcome, PutOutcome::Stored { .. })),
            Err(error) => Err(exception(py, &error)),
        }
    }

    /// Reads a value; None when there is none.
    #[pyo3(signature = (key, *, timeout=None))]
    fn get<'py>(
        &self,
        py: Python<'py>,
        key: &Bound<'py, PyAny>,
        timeout: Option<f64>,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let engine = self.engine(timeout)?;
        let key = arguments::key(&self.prefix, key)?;
        let mut bytes = Vec::new();
        match py.detach(|| engine.get(key.slices()[0], &mut bytes)) {
            Ok(GetOutcome::Hit { .. }) => Ok(Some(PyBytes::new(py, &bytes))),
            Ok(GetOutcome::Miss(_)) => Ok(None),
            Err(error) => Err(exception(py, &error)),
        }
    }

    /// Reads from ``offset`` of a value on into ``buffer``, until one of them ends. The length of the whole
    /// value, or None when there is none.
    #[pyo3(signature = (key, buffer, *, offset=0, timeout=None))]
    fn get_into(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        buffer: &Bound<'_, PyAny>,
        offset: u64,
        timeout: Option<f64>,
    ) -> PyResult<Option<u64>> {
        let engine = self.engine(timeout)?;
        let key = arguments::key(&self.prefix, key)?;
        let mut buffer = Memory::writable(buffer)?;
        match py.detach(|| engine.get_into(key.slices()[0], offset, buffer.as_mut())) {
            Ok(GetOutcome::Hit { length, .. }) => Ok(Some(length)),
            Ok(GetOutcome::Miss(_)) => Ok(None),
            Err(error) => Err(exception(py, &error)),
        }
    }

    /// Which keys are stored, in one round trip. Keys of a server that is lost count as not stored.
    #[pyo3(signature = (keys, *, timeout=None))]
    fn exists(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        timeout: Option<f64>,
    ) -> PyResult<Vec<bool>> {
        let engine = self.engine(timeout)?;
        let keys = arguments::keys(&self.prefix, keys)?;
        py.detach(|| engine.exists(&keys.slices())).map_err(|error| exception(py, &error))
    }

    /// How many keys at the front of the list are stored, in one round trip.
    #[pyo3(signature = (keys, *, timeout=None))]
    fn match_prefix(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        timeout: Option<f64>,
    ) -> PyResult<usize> {
        let engine = self.engine(timeout)?;
        let keys = arguments::keys(&self.prefix, keys)?;
        py.detach(|| engine.match_prefix(&keys.slices())).map_err(|error| exception(py, &error))
    }

    /// Stores many values, in the order of their chain. Per key, whether a value of it is stored now, by this
    /// call or an earlier one; ``errors``, a list, gets ``(index, Error)`` of the others.
    ///
    /// A value that lies in several places is given as a list of its pieces. ``together``: all of them or
    /// none. When one cannot be stored, those that this call has stored are
    /// removed again.
    #[pyo3(signature = (keys, values, *, replace=false, ttl=None, durable=false, pin=None, timeout=None,
                        together=false, errors=None))]
    #[allow(clippy::too_many_arguments, reason = "they are keywords where it is called")]
    fn put_batch(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        values: &Bound<'_, PyAny>,
        replace: bool,
        ttl: Option<f64>,
        durable: bool,
        pin: Option<f64>,
        timeout: Option<f64>,
        together: bool,
        errors: Option<&Bound<'_, PyList>>,
    ) -> PyResult<Vec<bool>> {
        let engine = self.engine(timeout)?;
        let options = PutArguments { replace, ttl, durable, pin, timeout }.options()?;
        let keys = arguments::keys(&self.prefix, keys)?;
        let values = arguments::sources(&keys, values)?;
        let results = py.detach(|| store(&engine, &keys, &values, options, together));
        let stored = results.iter().enumerate().map(|(at, result)| match result {
            Ok(_) => Ok(true),
            Err(error) => tell(py, errors, at, error).map(|()| false),
        });
        stored.collect()
    }

    /// Reads many values. Per key the length of the value, or None when there is none or it could not be
    /// read, which ``errors``, a list, tells as ``(index, Error)``. What is in a buffer means nothing when its
    /// entry is None; a value longer than its buffer is cut. A list of buffers is filled one behind the other.
    #[pyo3(signature = (keys, buffers, *, timeout=None, errors=None))]
    fn get_batch_into(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        buffers: &Bound<'_, PyAny>,
        timeout: Option<f64>,
        errors: Option<&Bound<'_, PyList>>,
    ) -> PyResult<Vec<Option<u64>>> {
        let engine = self.engine(timeout)?;
        let keys = arguments::keys(&self.prefix, keys)?;
        let mut buffers = arguments::sinks(&keys, buffers)?;
        let results = py.detach(|| read(&engine, &keys, &mut buffers));
        let lengths = results.iter().enumerate().map(|(at, result)| match result {
            Ok(GetOutcome::Hit { length, .. }) => Ok(Some(*length)),
            Ok(GetOutcome::Miss(_)) => Ok(None),
            Err(error) => tell(py, errors, at, error).map(|()| None),
        });
        lengths.collect()
    }

    /// Removes blocks. Per key, whether there was one.
    #[pyo3(signature = (keys, *, timeout=None, errors=None))]
    fn delete(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        timeout: Option<f64>,
        errors: Option<&Bound<'_, PyList>>,
    ) -> PyResult<Vec<bool>> {
        let engine = self.engine(timeout)?;
        let keys = arguments::keys(&self.prefix, keys)?;
        let results = py.detach(|| engine.delete_batch(&keys.slices()));
        let there = results.iter().enumerate().map(|(at, result)| match result {
            Ok(there) => Ok(*there),
            Err(error) => tell(py, errors, at, error).map(|()| false),
        });
        there.collect()
    }

    /// Says what will become of a chain of blocks: ``"release"`` (nobody will want it), ``"retain"`` (it will
    /// be wanted) or ``"pin"`` for ``seconds``. Per key, whether there is a block.
    #[pyo3(signature = (keys, advice, seconds=None))]
    fn hint(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        advice: &str,
        seconds: Option<f64>,
    ) -> PyResult<Vec<bool>> {
        let engine = self.engine(None)?;
        let hint = arguments::hint(advice, seconds)?;
        let keys = arguments::keys(&self.prefix, keys)?;
        let results = py.detach(|| engine.hint(&keys.slices(), hint));
        let there = results.into_iter().map(|result| match result {
            Ok(outcome) => Ok(outcome.is_hit()),
            Err(error) if error.is_server_lost() => Ok(false),
            Err(error) => Err(exception(py, &error)),
        });
        there.collect()
    }

    /// What this client has done: per operation ``calls``, ``keys``, ``found``, ``missing``, ``errors``,
    /// ``bytes``, ``seconds`` and ``buckets`` (how many took how long; ``bounds`` are their upper bounds in
    /// seconds), and under ``wait`` how long batches stood in queues.
    fn stats(&self, py: Python<'_>) -> PyResult<Py<PyDict>> {
        counters::of(py, &self.client)
    }

    /// The counters of every server, by ``host:port``; an Error instead of those of one that is lost.
    fn server_stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let engine = self.engine(None)?;
        let all = PyDict::new(py);
        for (server, stats) in py.detach(|| engine.server_stats()) {
            match stats {
                Ok(stats) => {
                    let one = PyDict::new(py);
                    for (id, value) in &stats.stats {
                        match StatId::from_raw(*id) {
                            Some(known) => one.set_item(known.name(), value)?,
                            None => one.set_item(id, value)?,
                        }
                    }
                    all.set_item(server, one)?;
                }
                Err(error) => all.set_item(server, exception(py, &error).into_value(py))?,
            }
        }
        Ok(all)
    }

    /// The same client, all of whose calls, and those of its queues, belong to a trace: the 32 digits of its
    /// id, or a ``traceparent`` as W3C Trace Context has it. Servers name it where they log requests.
    fn traced(&self, trace: &str) -> PyResult<PyClient> {
        Ok(PyClient {
            client: self.engine(None)?.traced(arguments::trace(trace)?),
            prefix: self.prefix.clone(),
            closed: AtomicBool::new(false),
            queues: Mutex::default(),
        })
    }

    /// A queue for batches that run while the caller does something else, puts and gets on up to ``workers``
    /// threads, which are started when they are needed.
    #[pyo3(signature = (workers=4))]
    fn open_queue(&self, workers: usize) -> PyResult<PyQueue> {
        let queue = Arc::new(Queue::new(&self.engine(None)?, workers).map_err(of_queue)?);
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|queue| queue.strong_count() > 0);
        queues.push(Arc::downgrade(&queue));
        Ok(PyQueue::new(queue, self.prefix.clone()))
    }

    /// The namespace whose keys these are.
    #[getter]
    fn namespace(&self) -> &str {
        &self.client.config().namespace
    }

    /// The servers, as they were given.
    #[getter]
    fn servers(&self) -> Vec<String> {
        self.client.config().servers.clone()
    }

    /// What stands before every key.
    #[getter]
    fn prefix<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.prefix)
    }

    /// Seconds that a call may take that brings no time of its own.
    #[getter]
    fn request_timeout(&self) -> f64 {
        self.client.config().request_timeout_ms as f64 / 1000.0
    }

    /// Waits for what is under way in its queues and takes nothing more.
    fn close(&self, py: Python<'_>) {
        self.closed.store(true, Ordering::Relaxed);
        let queues =
            std::mem::take(&mut *self.queues.lock().unwrap_or_else(PoisonError::into_inner));
        let queues: Vec<Arc<Queue>> = queues.iter().filter_map(Weak::upgrade).collect();
        py.detach(|| queues.iter().for_each(|queue| queue.close()));
    }

    fn __enter__(this: Bound<'_, Self>) -> Bound<'_, Self> {
        this
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyAny>) {
        self.close(py);
    }

    fn __repr__(&self) -> String {
        let config = self.client.config();
        format!("Client({:?}, namespace={:?})", config.servers, config.namespace)
    }
}
