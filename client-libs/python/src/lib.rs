//! `memkv._core`: the client engine as Python sees it.
//!
//! Every call that talks to a server gives the interpreter's lock away for as long as it does, and reads and
//! writes the caller's memory where it is. What is asynchronous is a [`queue::Queue`]; everything that needs
//! Python's own machinery (asyncio, metrics over HTTP, fingerprints) is Python and stands beside it.

#![deny(unsafe_code)]

mod arguments;
mod buffer;
mod client;
mod connector;
mod counters;
mod errors;
mod queue;

use pyo3::prelude::*;

/// Client of memkv, the shared store of KV-cache blocks.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    errors::register(module)?;
    module.add_class::<client::PyClient>()?;
    module.add_class::<queue::PyQueue>()?;
    module.add_class::<queue::PyCompletion>()?;
    module.add_class::<connector::NativeConnector>()?;
    let at_exit = wrap_pyfunction!(queue::close_all, module)?;
    py.import("atexit")?.call_method1("register", (at_exit,))?;
    Ok(())
}
