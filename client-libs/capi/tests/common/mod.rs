//! A C compiler, the libraries that cargo built beside the test, and a real node.
#![allow(dead_code, reason = "each test uses its part of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::rc::Rc;

use memkv_node::config::{Config, Overrides};
use memkv_node::node::Node;
use memkv_node::paths::ThisMachine;

const CONFIG: &str = "
network: {address: '127.0.0.1:0'}
memory: {max_size: 128 MiB, hugepages: never}
storage: {mode: memory, drives: [{max_size: 512 MiB}]}
node: {reactors: 1}
";

/// A node that keeps its blocks in memory.
pub fn node() -> Node {
    let config = Config::parse(CONFIG, &Overrides::default(), &ThisMachine)
        .unwrap_or_else(|error| panic!("{error}"));
    Node::start(config, &(Rc::new(|_: &str, _, _| ()) as _)).expect("a node starts")
}

/// A file that cargo made of the crate's library: it stands beside the test's executable.
pub fn library(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    let path = test.with_file_name(name);
    assert!(path.exists(), "cargo made no {}", path.display());
    path
}

/// Whether there is such a program.
pub fn is_there(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Compiles one file, in which every warning is an error; `None` to look at it only.
pub fn compile(compiler: &str, options: &[&str], source: &Path, program: Option<&Path>) {
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("include");
    let mut command = Command::new(compiler);
    command.args(["-Wall", "-Wextra", "-Werror", "-g", "-I"]).arg(include).arg(source);
    if let Some(program) = program {
        command.arg("-o").arg(program);
    }
    ran(command.args(options));
}

/// Runs a program that must succeed; what it said on standard output.
pub fn ran(command: &mut Command) -> String {
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?}: {status}\n{stdout}\n{stderr}");
    eprint!("{stderr}");
    stdout.into_owned()
}
