//! Reactors, pollers, timers and local tasks.
