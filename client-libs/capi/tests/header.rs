//! `memkv.h` is what cbindgen makes of the crate, and a C and a C++ compiler take it without a warning.

mod common;

use std::path::Path;

/// Set, to anything, to write the header instead of comparing it.
const WRITE: &str = "MEMKV_WRITE_HEADER";

#[test]
fn the_header_is_up_to_date() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(folder.join("cbindgen.toml")).expect("a good file");
    let sources = ["status.rs", "types.rs", "calls.rs", "queue.rs"];
    let builder =
        sources.iter().fold(cbindgen::Builder::new().with_config(config), |builder, name| {
            builder.with_src(folder.join("src").join(name))
        });
    let mut made = Vec::new();
    builder.generate().expect("a header").write(&mut made);
    let made = String::from_utf8(made).expect("text");
    let path = folder.join("include/memkv.h");
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, &made).expect("room for a header");
    }
    let kept = std::fs::read_to_string(&path).expect("the header is kept in the repository");
    assert!(
        made == kept,
        "include/memkv.h is not what the crate says: run this test with {WRITE}=1, and look at the change"
    );
}

#[test]
fn the_header_is_c_and_c_plus_plus() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    for (name, compiler, standard) in [("a.c", "cc", "-std=c99"), ("a.cc", "c++", "-std=c++11")] {
        if !common::is_there(compiler) {
            assert_ne!(compiler, "cc", "a C compiler is needed to build this crate");
            eprintln!("SKIPPED: there is no {compiler}");
            continue;
        }
        let source = folder.path().join(name);
        std::fs::write(&source, "#include <memkv.h>\nint main(void) { return 0; }\n")
            .expect("room");
        let arguments = [standard, "-pedantic", "-fsyntax-only"];
        common::compile(compiler, &arguments, &source, None);
    }
}
