//! The memkv binary.
fn main() {}
