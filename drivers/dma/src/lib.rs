//! The one pool of memory that devices see.
