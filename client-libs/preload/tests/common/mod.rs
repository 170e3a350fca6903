//! A real node, a folder that must stay empty, and programs that run under the library.
#![allow(dead_code, reason = "each test uses its part of it")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::rc::Rc;

use memkv_client::Client;
use memkv_node::config::{Config, Overrides};
use memkv_node::node::Node;
use memkv_node::paths::ThisMachine;

const CONFIG: &str = "
network: {address: '127.0.0.1:0'}
memory: {max_size: 64 MiB, hugepages: never}
storage: {mode: memory, drives: [{max_size: 512 MiB}]}
node: {reactors: 1}
";

/// A node, and a folder under which everything is in it.
pub struct World {
    node: Option<Node>,
    address: String,
    folder: tempfile::TempDir,
}

impl World {
    pub fn new() -> World {
        let config = Config::parse(CONFIG, &Overrides::default(), &ThisMachine)
            .unwrap_or_else(|error| panic!("{error}"));
        let node = Node::start(config, &(Rc::new(|_: &str, _, _| ()) as _)).expect("a node starts");
        let folder = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(folder.path().join("kv")).expect("a directory");
        World { address: node.address().to_string(), node: Some(node), folder }
    }

    /// The path under which everything is redirected.
    pub fn prefix(&self) -> PathBuf {
        self.folder.path().join("kv")
    }

    /// A file beside it.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A client of the node.
    pub fn client(&self) -> Client {
        let variable = |name: &str| match name {
            "MEMKV_SERVERS" => Some(self.address.clone()),
            // The machines of tests are slow at times.
            "MEMKV_CONNECT_TIMEOUT_MS" => Some("60000".to_owned()),
            _ => None,
        };
        let config = memkv_client::Config::from_parts(None, variable).expect("a configuration");
        Client::new(config).expect("a client")
    }

    /// Ends the node.
    pub fn stop(&mut self) {
        self.node.take().expect("it runs").stop().expect("an orderly stop");
    }

    /// A program of the tests, compiled.
    pub fn program(&self, name: &str) -> PathBuf {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name);
        let program = self.beside(name.trim_end_matches(".c"));
        let mut compiler = Command::new("cc");
        compiler.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-g", "-O1", "-pthread"]);
        ran(compiler.arg(source).arg("-o").arg(&program), true);
        program
    }

    /// A command as it is without the library.
    pub fn plain(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        for variable in ["MEMKV_CONFIG", "MEMKV_NAMESPACE", "MEMKV_AUTH_KEY", "LD_PRELOAD"] {
            command.env_remove(variable);
        }
        command.env("MEMKV_SERVERS", &self.address);
        // The machines of tests are slow at times.
        command.env("MEMKV_CONNECT_TIMEOUT_MS", "60000").env("MEMKV_REQUEST_TIMEOUT_MS", "60000");
        command
    }

    /// A command under the library.
    pub fn under(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.plain(program);
        let test = std::env::current_exe().expect("a path");
        let library = test.with_file_name("libmemkv_preload.so");
        assert!(library.exists(), "cargo made no {}", library.display());
        command.env("LD_PRELOAD", library).env("MEMKV_PRELOAD_PREFIX", self.prefix());
        command
    }

    /// Everything is in memkv, and nothing on the local disk.
    #[track_caller]
    pub fn stays_empty(&self) {
        let mut found = std::fs::read_dir(self.prefix()).expect("the directory is there");
        assert!(found.next().is_none(), "something is on the local disk");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(node) = self.node.take() {
            let stopped = node.stop();
            if !std::thread::panicking() {
                stopped.expect("an orderly stop");
            }
        }
    }
}

/// Runs a program that must succeed, and be silent on standard error if `silent`. Both of what it said.
#[track_caller]
pub fn ran(command: &mut Command, silent: bool) -> (String, String) {
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let (stdout, stderr) = (text(stdout), text(stderr));
    assert!(status.success(), "{command:?}: {status}\n{stdout}\n{stderr}");
    assert!(!silent || stderr.is_empty(), "{command:?}: {stderr}");
    (stdout, stderr)
}
