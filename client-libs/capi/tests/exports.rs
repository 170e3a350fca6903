//! What the shared library shows to the dynamic linker.

mod common;

use std::process::Command;

#[test]
fn only_memkv_functions_are_exported_and_all_of_the_header() {
    let listed = common::ran(
        Command::new("nm")
            .args(["-D", "--defined-only", "--format=posix"])
            .arg(common::library("libmemkv.so")),
    );
    let mut exported: Vec<&str> =
        listed.lines().filter_map(|line| line.split(' ').next()).collect();
    exported.sort_unstable();
    let foreign: Vec<&&str> = exported.iter().filter(|name| !name.starts_with("memkv_")).collect();
    assert!(foreign.is_empty(), "{foreign:?}");

    let header = include_str!("../include/memkv.h");
    let words = header.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '(');
    let declared = words.filter_map(|word| word.split_once('(').map(|(name, _)| name));
    let mut declared: Vec<&str> = declared.filter(|name| name.starts_with("memkv_")).collect();
    declared.sort_unstable();
    // Comments call some of them by name, too.
    declared.dedup();
    assert_eq!(exported, declared);
    assert!(exported.len() > 20, "{exported:?}");
}

#[test]
fn it_has_a_name_for_the_linker_and_needs_only_the_c_library() {
    let dynamic =
        common::ran(Command::new("readelf").arg("-dW").arg(common::library("libmemkv.so")));
    let named = |kind: &str| -> Vec<String> {
        let lines = dynamic.lines().filter(|line| line.contains(kind));
        lines
            .filter_map(|line| Some(line.split_once('[')?.1.trim_end_matches(']').to_owned()))
            .collect()
    };
    assert_eq!(named("(SONAME)"), ["libmemkv.so.0"]);
    for needed in named("(NEEDED)") {
        let known = ["libc.so", "libgcc_s.so", "libm.so", "libpthread", "libdl", "ld-linux"];
        assert!(known.iter().any(|name| needed.starts_with(name)), "{needed}");
    }
}
