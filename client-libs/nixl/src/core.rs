//! Which core has loaded us.
//!
//! The number that a plug-in's table begins with has been 1 since NIXL 0.1 and guards nothing, but the slots of
//! a backend moved until 1.0. So the core itself is asked: 1.x exports a function that no 0.x has.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_int, c_void};

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
pub(crate) fn look() -> Core {
    let mut found = Core::Unknown;
    // SAFETY: the callback has the type that it must have, and `found` outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut found).cast()) };
    found
}

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
    // SAFETY: the name ends with a NUL; the library is loaded already, so nothing of it runs.
    let mark = unsafe {
        let library = libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD);
        if library.is_null() {
            return 0;
        }
        let mark = libc::dlsym(library, MARK.as_ptr());
        libc::dlclose(library);
        mark
    };
    // SAFETY: `look` gave a place for it.
    unsafe { *found.cast::<Core>() = if mark.is_null() { Core::TooOld } else { Core::Known } };
    1
}

/// Whether this is the file of a core: `…/libnixl.so`, perhaps with a version behind it.
fn is_core(path: &[u8]) -> bool {
    let Some(at) = path.windows(NAME.len()).rposition(|part| part == NAME) else { return false };
    matches!(path.get(at + NAME.len()), None | Some(b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_core_is_known_by_its_file() {
        assert!(is_core(b"/opt/lib/libnixl.so"));
        assert!(is_core(b"/opt/lib/libnixl.so.1.5"));
        assert!(!is_core(b"/opt/lib/libnixl_capi.so"));
        assert!(!is_core(b"/opt/lib/libnixl.sock"));
        assert!(!is_core(b""));
    }

    #[test]
    fn without_a_core_nothing_can_be_told() {
        assert_eq!(look(), Core::Unknown);
    }
}
