//! Which core has loaded us.
//!
//! The number that a plug-in's table begins with has been 1 since NIXL 0.1 and guards nothing, but the slots of
//! a backend moved until 1.0. So the core itself is asked: 1.x exports a function that no 0.x has.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_int, c_void};

/// In every 1.x, in no 0.x.
const MARK: &CStr =
    c"_ZNK9nixlAgent11prepMemViewERK12nixlDescListI13nixlBasicDescERPvPK21nixlAgentOptionalArgs";
/// The file of the core.
const NAME: &[u8] = b"/libnixl.so";

/// What is known of the core in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Core {
    /// Linked into the program, perhaps: nothing can be told.
    Unknown,
    /// 1.0 or later.
    Known,
    /// Older than 1.0.
    TooOld,
}

/// Looks at the libraries that are loaded.
///
/// First at their names, and at the core itself when they are known: while the loader tells of its libraries it
/// has one of its locks, and whoever opens one meanwhile has the other and waits for the first.
pub(crate) fn look() -> Core {
    let mut name: Option<CString> = None;
    // SAFETY: the callback has the type that it must have, and `name` outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut name).cast()) };
    let Some(name) = name else { return Core::Unknown };
    // SAFETY: the name ends with a NUL; the library is loaded already, so nothing of it runs, or is gone.
    let mark = unsafe {
        let library = libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD);
        if library.is_null() {
            return Core::Unknown;
        }
        let mark = libc::dlsym(library, MARK.as_ptr());
        libc::dlclose(library);
        mark
    };
    if mark.is_null() { Core::TooOld } else { Core::Known }
}

/// Keeps the name of a library if that is a core, and ends the visit then.
unsafe extern "C" fn visit(
    info: *mut libc::dl_phdr_info,
    _: libc::size_t,
    found: *mut c_void,
) -> c_int {
    // SAFETY: the system gives a description that lives for the call; its name may be NULL, or ends with a NUL.
    let name = unsafe {
        let name = (*info).dlpi_name;
        if name.is_null() {
            return 0;
        }
        CStr::from_ptr(name)
    };
    if !is_core(name.to_bytes()) {
        return 0;
    }
    // SAFETY: `look` gave a place for it.
    unsafe { *found.cast::<Option<CString>>() = Some(name.to_owned()) };
    1
}

/// Whether this is the file of a core: `…/libnixl.so`, perhaps with a version behind it.
fn is_core(path: &[u8]) -> bool {
    let Some(at) = path.windows(NAME.len()).rposition(|part| part == NAME) else { return false };
    matches!(path.get(at + NAME.len()), None | Some(b'.'))
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_core_is_known_by_its_file() {
        assert!(is_core(b"/opt/lib/libnixl.so"));
        assert!(is_core(b"/opt/lib/libnixl.so.1.5"));
        assert!(!is_core(b"/opt/lib/libnixl_capi.so"));
        assert!(!is_core(b"/opt/lib/libnixl.sock"));
        assert!(!is_core(b""));
    }

    /// Opens a library, or finds it opened.
    fn open(path: &Path) -> *mut c_void {
        let name = CString::new(path.to_str().expect("a path")).expect("no NUL");
        // SAFETY: a copy of a library that this process has already, whose beginning does nothing.
        let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!library.is_null(), "{} cannot be opened", path.display());
        library
    }

    /// The file of a library of this process that needs nothing but the C library.
    fn some_library() -> PathBuf {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("a list");
        let files = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
        let mut some = files.filter(|file| file.contains("/libgcc_s.so"));
        some.next().expect("what unwinds").into()
    }

    /// One test, for there is one list of libraries.
    #[test]
    fn a_core_is_looked_at_while_others_open_libraries() {
        assert_eq!(look(), Core::Unknown, "without a core nothing can be told");
        let folder = tempfile::tempdir().expect("a folder");
        let [core, other] = ["libnixl.so", "libother.so"].map(|name| folder.path().join(name));
        for file in [&core, &other] {
            std::fs::copy(some_library(), file).expect("a copy");
        }
        open(&core);
        let (done, is_over) = (mpsc::channel(), AtomicBool::new(false));
        let (told, ends) = done;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    // SAFETY: it was just opened, and nobody uses it.
                    unsafe { libc::dlclose(open(&other)) };
                }
            });
            scope.spawn(move || {
                let all_old = (0..20_000).all(|_| look() == Core::TooOld);
                told.send(all_old).expect("somebody waits");
            });
            let ended = ends.recv_timeout(Duration::from_secs(60));
            if ended.is_err() {
                // Neither of them will ever end.
                eprintln!("they wait for each other");
                std::process::abort();
            }
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(ended, Ok(true), "it has no mark");
        });
    }
}
