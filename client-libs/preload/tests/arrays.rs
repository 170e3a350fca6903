//! numpy's files under the library: `arrays.py`.

mod common;

use std::path::Path;
use std::process::Command;

use common::{World, ran};

/// A Python that has numpy: the one that the variable names, or the one in the path.
fn python() -> Option<String> {
    let python = std::env::var("MEMKV_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let mut command = Command::new(&python);
    let there = command.args(["-c", "import numpy"]).output();
    there.is_ok_and(|output| output.status.success()).then_some(python)
}

#[test]
fn arrays_and_counts_are_the_same_as_on_a_disk() {
    let Some(python) = python() else {
        eprintln!("SKIPPED: no Python with numpy; name one by MEMKV_TEST_PYTHON");
        return;
    };
    let world = World::new();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/arrays.py");
    let disk = world.beside("disk");
    std::fs::create_dir(&disk).expect("a directory");
    // Each is a process of its own.
    for what in ["fill", "check", "clear"] {
        let (there, _) = ran(world.plain(&python).arg(&script).arg(&disk).arg(what), true);
        let mut under = world.under(&python);
        let (here, _) = ran(under.arg(&script).arg(world.prefix()).arg(what), true);
        assert_eq!(here, there, "{what}");
        assert!(there.lines().count() > 5, "{there}");
        world.stays_empty();
    }
}
