//! Names for addresses: of the kernel, and of a process's own program.

use std::fs;

/// Names in the order of their addresses.
#[derive(Default)]
pub struct Symbols(Vec<(u64, String)>);

impl Symbols {
    fn new(mut all: Vec<(u64, String)>) -> Symbols {
        all.sort();
        Symbols(all)
    }

    /// Those of the kernel, which tells them to root alone.
    pub fn of_kernel() -> Symbols {
        let text = fs::read_to_string("/proc/kallsyms").expect("the kernel tells");
        let symbol = |line: &str| {
            let mut words = line.split(' ');
            let at = u64::from_str_radix(words.next()?, 16).ok()?;
            let name = words.nth(1)?.split('\t').next()?;
            Some((at, name.to_owned()))
        };
        Symbols::new(text.lines().filter_map(symbol).collect())
    }

    /// Those of the program that a process runs, where it lies in memory; what else is mapped has the
    /// names of its files.
    pub fn of_program(process: u32, path: &str) -> Symbols {
        let maps = fs::read_to_string(format!("/proc/{process}/maps")).expect("it runs");
        let mapping = |line: &str| {
            let (from, to) = line.split(' ').next()?.split_once('-')?;
            let number = |text| u64::from_str_radix(text, 16).ok();
            let name = line.split_ascii_whitespace().nth(5).unwrap_or_default();
            Some((number(from)?, number(to)?, name.to_owned()))
        };
        let maps: Vec<(u64, u64, String)> = maps.lines().filter_map(mapping).collect();
        let (own, others): (Vec<_>, Vec<_>) = maps.into_iter().partition(|map| map.2 == path);
        let base = own.first().expect("it is mapped").0;
        let mut all = functions(&fs::read(path).expect("it is there"));
        all.iter_mut().for_each(|(at, name)| (*at, *name) = (*at + base, plain(name)));
        all.extend(own.iter().map(|(_, end, _)| (*end, String::new())));
        for (from, to, name) in others {
            all.extend([(from, name), (to, String::new())]);
        }
        Symbols::new(all)
    }

    /// The name of what an address belongs to; empty outside of all.
    pub fn name(&self, at: u64) -> &str {
        let behind = self.0.partition_point(|(start, _)| *start <= at);
        behind.checked_sub(1).map_or("", |index| &self.0[index].1)
    }
}

/// A name as it stands in the source, without its hash; one of another kind as it is.
fn plain(name: &str) -> String {
    let Some(mut rest) = name.strip_prefix("_ZN") else { return name.to_owned() };
    let mut parts = Vec::new();
    while let Some(at) = rest.find(|c: char| !c.is_ascii_digit()).filter(|at| *at > 0) {
        let Some(end) = rest[..at].parse().ok().map(|len: usize| at + len) else { break };
        parts.extend(rest.get(at..end));
        rest = rest.get(end..).unwrap_or_default();
    }
    parts.retain(|part| !(part.len() == 17 && part.starts_with('h')));
    parts.join("::")
}

/// Functions of a program: the sections of an ELF file of 64 bits (System V ABI, chapter 4).
fn functions(file: &[u8]) -> Vec<(u64, String)> {
    const SYMBOLS: u32 = 2;
    const FUNCTION: u8 = 2;
    let number = |at: usize, bytes: usize| {
        let word = file[at..at + bytes].iter().rev();
        word.fold(0u64, |sum, byte| sum << 8 | u64::from(*byte))
    };
    let sections = number(0x28, 8) as usize;
    let section = |index: usize| sections + index * number(0x3a, 2) as usize;
    let field = |index: usize, at: usize| number(section(index) + at, 8) as usize;
    let mut all = Vec::new();
    for table in 0..number(0x3c, 2) as usize {
        if number(section(table) + 4, 4) as u32 != SYMBOLS {
            continue;
        }
        let names = field(number(section(table) + 0x28, 4) as usize, 0x18);
        let (from, bytes) = (field(table, 0x18), field(table, 0x20));
        for symbol in (from..from + bytes).step_by(24) {
            if file[symbol + 4] & 15 == FUNCTION {
                let name = &file[names + number(symbol, 4) as usize..];
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                all.push((number(symbol + 8, 8), String::from_utf8_lossy(name).into_owned()));
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_find_the_name_before_them() {
        let all = [(20, "b"), (10, "a"), (30, "")];
        let symbols = Symbols::new(all.map(|(at, name)| (at, name.to_owned())).to_vec());
        let names = [9, 10, 19, 20, 29, 30].map(|at| symbols.name(at));
        assert_eq!(names, ["", "a", "a", "b", "b", ""]);
    }

    #[test]
    fn names_are_made_plain() {
        let mangled = "_ZN12memkv_poller7reactor7Reactor4step17h40a6ea5ad7d4170cE";
        assert_eq!(plain(mangled), "memkv_poller::reactor::Reactor::step");
        assert_eq!(plain("memcpy"), "memcpy");
        assert_eq!(plain("_ZN99short"), "");
    }

    #[test]
    fn the_functions_of_a_program_are_found() {
        let own = std::env::current_exe().expect("a path");
        let all = functions(&fs::read(own).expect("it is there"));
        assert!(all.iter().any(|(_, name)| name.contains("functions_of_a_program_are_found")));
    }
}
