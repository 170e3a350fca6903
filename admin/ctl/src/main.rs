//! The memkvctl binary.
fn main() {}
