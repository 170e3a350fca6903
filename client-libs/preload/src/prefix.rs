//! Which paths are ours, and the names of what they lead to.

/// The path under which everything is ours: absolute, without a slash at its end.
pub(crate) struct Prefix(Vec<u8>);

impl Prefix {
    /// Of what the variable says; `None` unless it is absolute, and more than the root.
    pub fn new(text: &[u8]) -> Option<Prefix> {
        let parts = parts(text)?;
        let path: Vec<u8> = parts.iter().flat_map(|part| [b"/", *part].concat()).collect();
        (text.first() == Some(&b'/') && !path.is_empty()).then_some(Prefix(path))
    }

    /// The bytes that a path of ours begins with.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name of what is at `path`, relative to the prefix and without needless parts; empty for the prefix
    /// itself. `None` when the path is not ours.
    pub fn name(&self, path: &[u8]) -> Option<Vec<u8>> {
        let rest = path.strip_prefix(&*self.0)?;
        if !(rest.is_empty() || rest[0] == b'/') {
            return None;
        }
        // A path that leaves the prefix by `..` is another's.
        Some(parts(rest)?.join(&b'/'))
    }
}

/// The parts of a path; `None` when it leaves where it begins.
fn parts(path: &[u8]) -> Option<Vec<&[u8]>> {
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts)
}

/// The directory of a name, and its last part; both are empty for the prefix itself.
pub(crate) fn split(name: &[u8]) -> (&[u8], &[u8]) {
    match name.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&name[..at], &name[at + 1..]),
        None => (b"", name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_absolute_and_not_everything() {
        for bad in ["", "/", "//", "relative", "./a", "/.."] {
            assert!(Prefix::new(bad.as_bytes()).is_none(), "{bad}");
        }
        assert_eq!(Prefix::new(b"/mnt//memkv/").expect("a prefix").bytes(), b"/mnt/memkv");
    }

    #[test]
    fn names_are_what_stands_behind_the_prefix() {
        let prefix = Prefix::new(b"/mnt/memkv").expect("a prefix");
        let name = |path: &str| prefix.name(path.as_bytes());
        assert_eq!(name("/mnt/memkv").as_deref(), Some(&b""[..]));
        assert_eq!(name("/mnt/memkv/").as_deref(), Some(&b""[..]));
        assert_eq!(name("/mnt/memkv/a/b").as_deref(), Some(&b"a/b"[..]));
        assert_eq!(name("/mnt/memkv//./a/../b/").as_deref(), Some(&b"b"[..]));
        for other in ["/mnt/memkvx", "/mnt/memk", "/mnt", "mnt/memkv", "", "/mnt/memkv/../other"] {
            assert_eq!(name(other), None, "{other}");
        }
    }

    #[test]
    fn a_name_has_a_directory() {
        assert_eq!(split(b"a/b/c"), (&b"a/b"[..], &b"c"[..]));
        assert_eq!(split(b"c"), (&b""[..], &b"c"[..]));
        assert_eq!(split(b""), (&b""[..], &b""[..]));
    }
}
