//! `conformance.c`, run against a real node.

mod common;

use std::process::Command;

use common::{Program, ran, uri};

const GOOD: &str = "all is as the header says\n";

#[test]
fn the_library_keeps_what_the_header_promises() {
    let node = common::node(0);
    let program = Program::compile();
    assert_eq!(ran(&mut program.command(&[], &uri(&node.address().to_string()))), GOOD);
    node.stop().expect("an orderly stop");
}

#[test]
fn it_keeps_it_with_its_keys_on_several_servers() {
    let nodes = [common::node(0), common::node(0)];
    let program = Program::compile();
    let servers = nodes.each_ref().map(|node| node.address().to_string()).join(",");
    assert_eq!(ran(&mut program.command(&[], &uri(&servers))), GOOD);
    for node in nodes {
        node.stop().expect("an orderly stop");
    }
}

#[test]
fn valgrind_finds_nothing() {
    if !common::is_there("valgrind") {
        eprintln!("SKIPPED: there is no valgrind");
        return;
    }
    let node = common::node(0);
    let program = Program::compile();
    let leaks = ["--leak-check=full", "--show-leak-kinds=definite,indirect"];
    let valgrind = ["valgrind", "--quiet", "--error-exitcode=9", "--fair-sched=yes"];
    let under = [&valgrind[..], &leaks, &["--errors-for-leak-kinds=definite,indirect"]].concat();
    assert_eq!(ran(&mut program.command(&under, &uri(&node.address().to_string()))), GOOD);
    node.stop().expect("an orderly stop");
}

#[test]
fn one_function_is_exported_and_the_c_library_is_enough() {
    let nm = ["-D", "--defined-only", "--format=posix"];
    let listed = ran(Command::new("nm").args(nm).arg(common::library()));
    let names: Vec<&str> = listed.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names, ["kv_store_get_vtable"]);
    let dynamic = ran(Command::new("readelf").arg("-dW").arg(common::library()));
    let needed = dynamic.lines().filter(|line| line.contains("(NEEDED)"));
    for line in needed {
        let known = ["libc.so", "libgcc_s.so", "libm.so", "libpthread", "libdl", "ld-linux"];
        assert!(known.iter().any(|name| line.contains(&format!("[{name}"))), "{line}");
    }
}

#[test]
fn who_cannot_open_is_told_what_to_write() {
    let program = Program::compile();
    let told = |uri: &str| {
        let mut command = program.command(&[], uri);
        let output = command.arg("load").output().expect("it runs");
        assert!(!output.status.success(), "{uri}");
        String::from_utf8(output.stderr).expect("text")
    };
    for (uri, advice) in [
        ("memkv:/127.0.0.1:1", "write memkv://host:port[,host:port...]/namespace"),
        ("memkv://127.0.0.1:port/n", "`127.0.0.1:port` is not a server; write host:port"),
        ("memkv://192.0.2.1:1/n", "set auth_key (or MEMKV_AUTH_KEY)"),
        ("memkv://127.0.0.1:1/n?pin=9", "`?` has no meaning in this URI"),
    ] {
        let said = told(uri);
        assert!(said.contains(advice), "{uri}: {said}");
        assert!(said.contains("memkv: kv_store open"), "{uri}: {said}");
    }
}
