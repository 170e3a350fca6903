//! The admin endpoint of a node: health, readiness, status and metrics over HTTP.
//!
//! ```text
//! GET /v1/health   {"status":"healthy",…}     200; 503 when unhealthy
//! GET /v1/ready    ok                         200; 503 with the reason when not
//! GET /v1/status   the whole picture as JSON
//! GET /v1/metrics  Prometheus text
//! POST /v1/reload  the configuration is read again: 200, or 409, 422, 503 with the reason
//! ```
//!
//! It runs on one thread of its own with a small runtime ([`server`]), apart from the reactors: it can
//! neither slow them nor be stopped by a stuck one, for it only asks a [`memkv_admin_api::NodeAdmin`],
//! which answers from counters. [`routes`] turns requests into answers, [`metrics`] turns a snapshot
//! into Prometheus text through OpenTelemetry.

#![forbid(unsafe_code)]

mod metrics;
mod routes;
mod server;

pub use metrics::MetricsError;
pub use server::{AdminError, AdminServer};
