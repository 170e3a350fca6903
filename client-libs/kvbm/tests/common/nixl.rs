//! NIXL for layouts, which want an agent whether or not anything is moved by it: the real one where the loader
//! finds it (`LD_LIBRARY_PATH`), else a stand-in that can do nothing but be there.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use dynamo_memory::nixl::{NixlAgent, is_stub};

const NAME: &CStr = c"libnixl_capi.so";

/// Whether it is the real one.
pub fn is_real() -> bool {
    static REAL: OnceLock<bool> = OnceLock::new();
    *REAL.get_or_init(|| {
        let real = load(NAME);
        if !real {
            stand_in();
        }
        assert!(!is_stub(), "nixl-sys does not find the library that is loaded");
        real
    })
}

/// An agent without backends.
pub fn agent(name: &str) -> NixlAgent {
    is_real();
    NixlAgent::new(name).expect("an agent")
}

/// Compiles and loads it: whoever asks the loader for the real one's name is then given this.
fn stand_in() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/nixl.c");
    let library = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let library = library.join(format!("nixl-{}.so", std::process::id()));
    let name = format!("-Wl,-soname,{}", NAME.to_str().expect("ASCII"));
    let mut compiler = Command::new("cc");
    compiler.args(["-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", &name, "-o"]);
    let status = compiler.arg(&library).arg(&source).status();
    assert!(status.as_ref().is_ok_and(|status| status.success()), "{compiler:?}: {status:?}");
    let path = CString::new(library.to_str().expect("UTF-8")).expect("no NUL");
    assert!(load(&path), "{} cannot be loaded", library.display());
    let _ = std::fs::remove_file(library);
}

fn load(name: &CStr) -> bool {
    // SAFETY: a C string; what the library does when it is loaded is nothing.
    !unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) }.is_null()
}
