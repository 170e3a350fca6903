//! The client engine: routing, pools, batches, credits.
