//! Carriers that move bytes between nodes and clients.
