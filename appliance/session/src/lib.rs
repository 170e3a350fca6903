//! A connection's requests, one async function each.
