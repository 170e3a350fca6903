//! What a client has done, as a dict.

use memkv_client::{Client, Latency, Operation};
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Per operation `calls`, `keys`, `found`, `missing`, `errors`, `bytes`, `seconds` and `buckets`; `wait` has
/// the last two, for batches in queues; `bounds` the upper bounds of the buckets in seconds, the last of
/// which has none.
///
/// # Errors
/// Python's own.
pub fn of(py: Python<'_>, client: &Client) -> PyResult<Py<PyDict>> {
    let counters = client.counters();
    let all = PyDict::new(py);
    let time = |into: &Bound<'_, PyDict>, latency: &Latency| {
        into.set_item("seconds", latency.total.as_secs_f64())?;
        into.set_item("buckets", latency.buckets.to_vec())
    };
    for operation in Operation::ALL {
        let tally = counters.of(operation);
        let one = PyDict::new(py);
        one.set_item("calls", tally.calls)?;
        one.set_item("keys", tally.keys)?;
        one.set_item("found", tally.found)?;
        one.set_item("missing", tally.missing)?;
        one.set_item("errors", tally.errors)?;
        one.set_item("bytes", tally.bytes)?;
        time(&one, &tally.latency)?;
        all.set_item(operation.name(), one)?;
    }
    let wait = PyDict::new(py);
    time(&wait, &counters.waits)?;
    all.set_item("wait", wait)?;
    let bounds = (0..Latency::BUCKETS).filter_map(Latency::bound);
    all.set_item("bounds", bounds.map(|bound| bound.as_secs_f64()).collect::<Vec<_>>())?;
    Ok(all.unbind())
}
