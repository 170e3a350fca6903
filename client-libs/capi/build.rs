//! Gives the shared library its name for the dynamic linker, and keeps what it is made of to itself.

#![forbid(unsafe_code)]

/// Counts the changes of the ABI that old programs do not survive.
const ABI: u32 = 0;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|system| system == "linux") {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libmemkv.so.{ABI}");
        // rustc exports what any crate in it offers to C.
        println!("cargo::rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
    }
}
