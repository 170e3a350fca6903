//! The contract by which a node is asked.
