//! The admin HTTP endpoint and metrics.
