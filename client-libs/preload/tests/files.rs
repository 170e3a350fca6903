//! Programs in C under the library: `files.c`.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

use common::{World, ran};

#[test]
fn files_are_as_they_were_also_for_another_process_and_none_is_on_the_disk() {
    let world = World::new();
    let program = world.program("files.c");
    for (what, telling) in [("write", "memkv: .: not entered: "), ("read", "")] {
        let (said, told) = ran(world.under(&program).arg(what).arg(world.prefix()), false);
        assert_eq!(said, "done\n");
        assert!(told.starts_with(telling) && told.lines().count() <= 1, "{told}");
        world.stays_empty();
    }
}

#[test]
fn threads_and_children_do_not_disturb_each_other() {
    let world = World::new();
    let program = world.program("files.c");
    let (said, _) = ran(world.under(&program).arg("threads").arg(world.prefix()), true);
    assert_eq!(said, "done\n");
    world.stays_empty();
}

#[test]
fn names_that_processes_add_at_the_same_time_are_all_there() {
    let world = World::new();
    let program = world.program("files.c");
    let start = |_| world.under(&program).arg("many").arg(world.prefix()).spawn().expect("it runs");
    let children: Vec<_> = (0..3).map(start).collect();
    for mut child in children {
        assert!(child.wait().expect("it ends").success());
    }
    let (said, _) = ran(world.under(&program).arg("count").arg(world.prefix()), true);
    assert_eq!(said, "120 files, done\n");
}

#[test]
fn a_file_of_which_a_part_was_evicted_is_no_file() {
    let world = World::new();
    let program = world.program("files.c");
    ran(world.under(&program).arg("write").arg(world.prefix()), false);
    let client = world.client();
    let mut head = [0; 64];
    assert!(client.get_into(b"f/large", 0, &mut head).expect("an answer").is_hit());
    let id: String = head[40..56].iter().map(|byte| format!("{byte:02x}")).collect();
    let parts: Vec<String> = (0..4).map(|number| format!("p/{id}/{number}")).collect();
    let keys: Vec<&[u8]> = parts.iter().map(String::as_bytes).collect();
    assert_eq!(client.match_prefix(&keys).expect("an answer"), 3);
    client.delete(keys[1], None).expect("an answer");
    let (said, _) = ran(world.under(&program).arg("maimed").arg(world.prefix()), true);
    assert_eq!(said, "done\n");
}

#[test]
fn a_server_that_is_gone_is_an_error_and_a_line_and_no_wait() {
    let mut world = World::new();
    let program = world.program("files.c");
    let mut command = world.under(&program);
    command.arg("gone").arg(world.prefix());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program runs");
    let mut said = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    said.read_line(&mut line).expect("text");
    assert_eq!(line, "open\n");
    world.stop();
    child.stdin.take().expect("a pipe").write_all(b"go on\n").expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let told = String::from_utf8(output.stderr).expect("text");
    let mut rest = String::new();
    said.read_to_string(&mut rest).expect("text");
    assert!(output.status.success() && rest == "done\n", "{told}");
    for lost in ["file", "stream"] {
        assert!(told.contains(&format!("memkv: {lost}: NOT STORED: ")), "{told}");
    }
    world.stays_empty();
}

#[test]
fn without_the_variable_everything_is_as_without_the_library() {
    let world = World::new();
    let program = world.program("files.c");
    let directory = world.beside("local");
    std::fs::create_dir(&directory).expect("a directory");
    let mut command = world.under(&program);
    // No server is needed for this.
    command.env_remove("MEMKV_PRELOAD_PREFIX").env("MEMKV_SERVERS", "127.0.0.1:1");
    let (said, _) = ran(command.arg("threads").arg(&directory), true);
    assert_eq!(said, "done\n");
    assert!(directory.join("thread-0-0").exists(), "a file is a file");
}

#[test]
fn other_paths_and_a_prefix_that_is_none_are_left_alone() {
    let world = World::new();
    let program = world.program("files.c");
    let directory = world.beside("kv-beside");
    std::fs::create_dir(&directory).expect("a directory");
    let (said, _) = ran(world.under(&program).arg("threads").arg(&directory), true);
    assert_eq!(said, "done\n");
    assert!(directory.join("thread-0-0").exists(), "its path only begins like the prefix");
    let mut command = world.under(&program);
    command.env("MEMKV_PRELOAD_PREFIX", "relative/path");
    let (_, told) = ran(command.arg("threads").arg(&directory), false);
    assert!(told.contains("must be an absolute path"), "{told}");
}
