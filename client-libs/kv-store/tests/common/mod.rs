//! The library that cargo built beside the test, the C program, and a real node.
#![allow(dead_code, reason = "each test uses its part of it")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::rc::Rc;

use memkv_client::Client;
use memkv_node::config::{Config, Overrides};
use memkv_node::node::Node;
use memkv_node::paths::ThisMachine;

/// A node that keeps its blocks in memory; port 0 for any.
pub fn node(port: u16) -> Node {
    node_of(port, "drives: [{max_size: 512 MiB}]")
}

/// A node whose storage is described further.
pub fn node_of(port: u16, storage: &str) -> Node {
    let config = format!(
        "
network: {{address: '127.0.0.1:{port}'}}
memory: {{max_size: 128 MiB, hugepages: never}}
storage: {{mode: memory, {storage}}}
node: {{reactors: 1}}
"
    );
    let config = Config::parse(&config, &Overrides::default(), &ThisMachine)
        .unwrap_or_else(|error| panic!("{error}"));
    Node::start(config, &(Rc::new(|_: &str, _, _| ()) as _)).expect("a node starts")
}

/// A client of a node, in the namespace of [`World::uri`].
pub fn client(address: &str) -> Client {
    let variable = |name: &str| match name {
        "MEMKV_SERVERS" => Some(address.to_owned()),
        "MEMKV_NAMESPACE" => Some("sessions".to_owned()),
        // The machines of tests are slow at times.
        "MEMKV_CONNECT_TIMEOUT_MS" => Some("60000".to_owned()),
        _ => None,
    };
    let config = memkv_client::Config::from_parts(None, variable).expect("a configuration");
    Client::new(config).expect("a client")
}

/// The URI of a namespace on a server.
pub fn uri(address: &str) -> String {
    format!("memkv://{address}/sessions")
}

/// The library that cargo made: it stands beside the test's executable.
pub fn library() -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    let path = test.with_file_name("libkv_store_memkv.so");
    assert!(path.exists(), "cargo made no {}", path.display());
    path
}

/// Whether there is such a program.
pub fn is_there(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// `conformance.c`, compiled.
pub struct Program {
    folder: tempfile::TempDir,
}

impl Program {
    pub fn compile() -> Program {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut compiler = Command::new("cc");
        compiler.args(["-std=gnu99", "-Wall", "-Wextra", "-Werror", "-g", "-O1", "-pthread", "-I"]);
        compiler.arg(root.join("include")).arg(root.join("tests/conformance.c"));
        ran(compiler.arg("-o").arg(folder.path().join("conformance")).arg("-ldl"));
        Program { folder }
    }

    /// A command that runs it, perhaps under another program, with nothing of this environment.
    pub fn command(&self, under: &[&str], uri: &str) -> Command {
        let program = self.folder.path().join("conformance");
        let mut command = match under {
            [] => Command::new(&program),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(&program);
                command
            }
        };
        for variable in ["MEMKV_CONFIG", "MEMKV_SERVERS", "MEMKV_NAMESPACE", "MEMKV_AUTH_KEY"] {
            command.env_remove(variable);
        }
        // The machines of tests are slow at times.
        command.env("MEMKV_CONNECT_TIMEOUT_MS", "60000").env("MEMKV_REQUEST_TIMEOUT_MS", "60000");
        command.arg(library()).arg(uri);
        command
    }

    /// Starts it with pipes.
    pub fn start(&self, uri: &str, words: &[&str]) -> Talk {
        self.start_command(self.command(&[], uri).args(words))
    }

    /// Starts a command of [`Program::command`] with pipes.
    pub fn start_command(&self, command: &mut Command) -> Talk {
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = piped.spawn().expect("it runs");
        let said = BufReader::new(child.stdout.take().expect("a pipe"));
        Talk { child, said }
    }

    /// Which session is stored.
    pub fn load(&self, address: &str) -> String {
        ran(self.command(&[], &uri(address)).arg("load")).trim_end().to_owned()
    }
}

/// A program that says lines and is told when to go on.
pub struct Talk {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Talk {
    /// The next line; empty when there is none.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("text");
        line.trim_end().to_owned()
    }

    pub fn go_on(&mut self) {
        self.child.stdin.as_mut().expect("a pipe").write_all(b"go on\n").expect("it reads");
    }

    /// Ends it as nobody ends himself.
    pub fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// Waits for its end, which must be a good one.
    pub fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().expect("it ends").success());
    }
}

/// Runs a program that must succeed; what it said on standard output.
#[track_caller]
pub fn ran(command: &mut Command) -> String {
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?}: {status}\n{stdout}\n{stderr}");
    eprint!("{stderr}");
    stdout.into_owned()
}
