//! Keeps what the library is made of to itself: it is loaded into programs that know nothing of it.

#![forbid(unsafe_code)]

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|system| system == "linux") {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libmemkv_preload.so");
        println!("cargo::rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
        // It stays when somebody unloads it: others call it by then.
        println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
}
