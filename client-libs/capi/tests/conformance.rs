//! `conformance.c`, compiled against both libraries, and run against a real node.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles the program; with what is needed to link one of the libraries.
fn program(folder: &Path, options: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance.c");
    let program = folder.join("conformance");
    let options = [&["-std=c99", "-pedantic", "-pthread"], options].concat();
    common::compile("cc", &options, &source, Some(&program));
    program
}

/// The shared library under the names that linker and loader look for.
fn shared(folder: &Path) -> PathBuf {
    let library = common::library("libmemkv.so");
    for name in ["libmemkv.so", "libmemkv.so.0"] {
        std::os::unix::fs::symlink(&library, folder.join(name)).expect("a link");
    }
    program(folder, &[&format!("-L{}", folder.display()), "-lmemkv"])
}

/// Runs the program against a node of its own.
fn conforms(mut command: Command, folder: &Path) {
    let node = common::node();
    for variable in ["MEMKV_CONFIG", "MEMKV_SERVERS", "MEMKV_NAMESPACE", "MEMKV_AUTH_KEY"] {
        command.env_remove(variable);
    }
    command.args([&node.address().to_string(), "127.0.0.1:1", "conformance"]);
    let said = common::ran(command.env("LD_LIBRARY_PATH", folder));
    assert_eq!(said, "all is as the header says\n");
    node.stop().expect("an orderly stop");
}

#[test]
fn the_shared_library_keeps_what_the_header_promises() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    conforms(Command::new(shared(folder.path())), folder.path());
}

#[test]
fn the_static_library_keeps_what_the_header_promises() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let library = common::library("libmemkv.a");
    let library = library.to_str().expect("a plain path");
    let program = program(folder.path(), &[library, "-lgcc_s", "-lm", "-ldl"]);
    conforms(Command::new(program), folder.path());
}

#[test]
fn valgrind_finds_nothing() {
    if !common::is_there("valgrind") {
        eprintln!("SKIPPED: there is no valgrind");
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary directory");
    let mut command = Command::new("valgrind");
    let leaks = ["--leak-check=full", "--show-leak-kinds=definite,indirect"];
    command.args(["--quiet", "--error-exitcode=9", "--fair-sched=yes"]).args(leaks);
    command.arg("--errors-for-leak-kinds=definite,indirect").arg(shared(folder.path()));
    conforms(command, folder.path());
}
