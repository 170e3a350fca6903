//! A deterministic disk, network and clock, and a decorator that injects faults.
