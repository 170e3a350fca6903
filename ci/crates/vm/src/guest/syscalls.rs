//! Counts the system calls of this thread, by the kernel's own tracing: each entry into the kernel is an
//! event, filtered by the thread, so that what other threads do is not in it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const TRACING: &str = "/sys/kernel/tracing";

/// How often each system call was made, by its number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Calls(BTreeMap<u32, u64>);

impl Calls {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Those with a number.
    pub fn of(&self, number: u32) -> u64 {
        self.0.get(&number).copied().unwrap_or_default()
    }

    /// All but those with a number.
    pub fn without(&self, number: u32) -> Calls {
        let others = self.0.iter().filter(|(other, _)| **other != number);
        Calls(others.map(|(number, count)| (*number, *count)).collect())
    }
}

/// Runs something and counts; with what it takes to switch the counting off again.
pub fn count(run: impl FnOnce()) -> Calls {
    let write = |name: &str, text: &str| {
        fs::write(Path::new(TRACING).join(name), text)
            .unwrap_or_else(|error| panic!("{name} takes no {text:?}: {error}"));
    };
    let thread = fs::read_link("/proc/thread-self").expect("every thread has this");
    let thread = thread.file_name().expect("a number").to_string_lossy().into_owned();
    write("buffer_size_kb", "8192");
    write("set_event_pid", &thread);
    write("trace", "");
    write("events/raw_syscalls/sys_enter/enable", "1");
    run();
    write("events/raw_syscalls/sys_enter/enable", "0");
    let trace = fs::read_to_string(Path::new(TRACING).join("trace")).expect("a trace");
    write("trace", "");
    calls(&trace)
}

fn calls(trace: &str) -> Calls {
    let mut calls = BTreeMap::new();
    for line in trace.lines() {
        let number = line
            .split_once("sys_enter: NR ")
            .and_then(|(_, rest)| rest.split(' ').next().and_then(|number| number.parse().ok()));
        if let Some(number) = number {
            *calls.entry(number).or_insert(0) += 1;
        }
    }
    Calls(calls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_counted_by_numbers() {
        let trace = "# tracer: nop\n#\n\
             memkv-vm-71 [000] ..... 3.1: sys_enter: NR 426 (7, 1, 1, 0, 0, 8)\n\
             memkv-vm-71 [000] ..... 3.2: sys_enter: NR 426 (7, 1, 1, 0, 0, 8)\n\
             memkv-vm-71 [000] ..... 3.3: sys_enter: NR 1 (9, 7f, 1, 0, 0, 8)\n";
        assert_eq!(calls(trace), Calls(BTreeMap::from([(426, 2), (1, 1)])));
        assert_eq!((calls(trace).total(), calls(trace).of(426), calls(trace).of(2)), (3, 2, 0));
        assert_eq!(calls(trace).without(426), Calls(BTreeMap::from([(1, 1)])));
    }
}
