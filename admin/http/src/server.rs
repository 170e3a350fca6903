//! The thread that serves the routes.
//!
//! Warp knows the routes; the loop around them is ours because an admin port is open to whatever
//! scans the network: at most [`CONNECTIONS_MAX`] connections at a time, a deadline for the header
//! of each request, and an end that does not wait for idle ones.

use crate::metrics::{Exporter, MetricsError};
use crate::routes::{State, routes};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use memkv_admin_api::NodeAdmin;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use warp::Filter;
use warp::reply::Response;

/// Connections at a time; the next one waits in the listener's queue.
const CONNECTIONS_MAX: usize = 64;
/// The time a client has to send the header of a request, idle time before it included.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// The time requests under way have to end when the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after a failed accept, which is usually a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why the admin endpoint did not start.
#[derive(Debug, Error)]
pub enum AdminError {
    /// The address is taken or not ours.
    #[error("cannot listen for admin requests on {address} (the data port + 1): {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The runtime or its thread could not be made.
    #[error("cannot start the admin thread: {0}")]
    Thread(#[source] io::Error),
    /// The metrics exporter could not be made.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
}

/// A running admin endpoint. Dropping it stops it.
#[derive(Debug)]
pub struct AdminServer {
    address: SocketAddr,
    stop: Option<oneshot::Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

impl AdminServer {
    /// Listens on the address (port 0 lets the system choose) and serves on a thread of its own.
    /// When this returns, requests are answered.
    pub fn start(address: SocketAddr, node: Arc<dyn NodeAdmin>) -> Result<Self, AdminError> {
        let bind = |source| AdminError::Bind { address, source };
        let listener = std::net::TcpListener::bind(address).map_err(bind)?;
        listener.set_nonblocking(true).map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let state = Arc::new(State { node, exporter: Exporter::new()? });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(AdminError::Thread)?;
        let (stop, stopped) = oneshot::channel();
        let serve = async move {
            match TcpListener::from_std(listener) {
                Ok(listener) => serve(listener, state, stopped).await,
                Err(error) => tracing::error!(%error, "the admin endpoint cannot be served"),
            }
        };
        let thread = std::thread::Builder::new()
            .name("memkv-admin".to_owned())
            .spawn(move || runtime.block_on(serve))
            .map_err(AdminError::Thread)?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops: the listener closes at once, requests under way end, the thread is gone.
    pub fn stop(mut self) {
        self.stop_and_join();
    }

    fn stop_and_join(&mut self) {
        // Dropping the sender is the signal.
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the admin thread had panicked");
        }
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        self.stop_and_join();
    }
}

async fn serve(
    listener: TcpListener,
    state: Arc<State>,
    mut stopped: oneshot::Receiver<Infallible>,
) {
    let routes = routes(state);
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (closing, closed) = watch::channel(false);
    let mut connections = JoinSet::new();
    loop {
        let (stream, permit) = tokio::select! {
            _ = &mut stopped => break,
            accepted = accept(&listener, &room) => accepted,
        };
        while connections.try_join_next().is_some() {}
        connections.spawn(connection(stream, routes.clone(), closed.clone(), permit));
    }
    drop(listener);
    closing.send_replace(true);
    let ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(STOP_TIMEOUT, ended).await.is_err() {
        tracing::warn!("admin requests were cut off by the stop");
    }
}

/// The next connection, once there is room for it.
async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> (TcpStream, OwnedSemaphorePermit) {
    let permit = room.clone().acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, permit),
            Err(error) => {
                tracing::warn!(%error, "an admin connection cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection until its client is done, it idles too long, or the server stops.
async fn connection<F>(
    stream: TcpStream,
    routes: F,
    mut closed: watch::Receiver<bool>,
    _permit: OwnedSemaphorePermit,
) where
    F: Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + 'static,
{
    let service = TowerToHyperService::new(warp::service(routes));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let mut serving = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let closing = async {
        // A closed channel means the same: the server is gone.
        let _ = closed.wait_for(|closed| *closed).await;
    };
    let result = tokio::select! {
        result = &mut serving => result,
        () = closing => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        // A client that leaves in the middle or sends something else than HTTP.
        tracing::debug!(%error, "an admin connection ended early");
    }
}
