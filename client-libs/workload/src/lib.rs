//! Traces, generators and the bench loop.
