//! What the shared library shows to the dynamic linker.

use std::path::PathBuf;
use std::process::Command;

/// The library, which cargo built beside the test.
fn library() -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    let path = test.with_file_name("libplugin_MEMKV.so");
    assert!(path.exists(), "cargo made no {}", path.display());
    path
}

fn ran(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn only_what_nixl_looks_for_is_exported() {
    let mut nm = Command::new("nm");
    let listed = ran(nm.args(["-D", "--defined-only", "--format=posix"]).arg(library()));
    let mut exported: Vec<&str> = listed
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (name, kind) = (words.next()?, words.next()?);
            // Templates of the C++ library are weak in every library that uses them.
            (!matches!(kind, "W" | "V" | "u")).then_some(name)
        })
        .collect();
    exported.sort_unstable();
    assert_eq!(exported, ["nixl_plugin_fini", "nixl_plugin_init"]);
}

#[test]
fn it_needs_the_c_and_the_cpp_library_alone() {
    let mut readelf = Command::new("readelf");
    let dynamic = ran(readelf.arg("-dW").arg(library()));
    let needed = dynamic.lines().filter(|line| line.contains("(NEEDED)"));
    let names = needed.filter_map(|line| Some(line.split_once('[')?.1.trim_end_matches(']')));
    let names: Vec<&str> = names.collect();
    assert!(names.iter().any(|name| name.starts_with("libstdc++.so")), "{names:?}");
    for name in names {
        let known = ["libc.so", "libgcc_s.so", "libm.so", "libstdc++.so", "ld-linux"];
        assert!(known.iter().any(|start| name.starts_with(start)), "{name}");
    }
}
