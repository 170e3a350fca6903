//! Where C++ and NIXL call in: pointers become references, panics become numbers.
//!
//! NIXL loads the library, calls [`nixl_plugin_init`] and gets the table of `cpp/shim.cpp`, which calls back
//! through [`Calls`]: no other function leaves the library. The contract is that of the shim: what it passes is
//! NULL or points to what its type says for the length of the call, and pointers that it was given come back
//! unchanged, once, to the function that ends them.

#![allow(unsafe_code)]
#![allow(clippy::missing_safety_doc, reason = "the contract of all stands in the first lines")]

use std::ffi::{c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use memkv_client::one_line;

use crate::core::{self, Core};
use crate::device;
use crate::engine::{End, Engine, Object};
use crate::settings::{NAMES, Settings};
use crate::status::{Refusal, Status, say};
use crate::transfer::{Direction, Prepared};

#[repr(C)]
#[derive(Clone, Copy)]
struct Text {
    data: *const c_char,
    length: usize,
}

// SAFETY: those that are shared are constants.
unsafe impl Sync for Text {}

#[repr(C)]
struct Setting {
    name: Text,
    value: Text,
}

#[repr(C)]
struct Stretch {
    address: usize,
    length: usize,
    device: u64,
}

#[repr(C)]
struct Transfer {
    direction: c_int,
    local_kind: c_int,
    remote_kind: c_int,
    locals: *const Stretch,
    local_count: usize,
    remotes: *const Stretch,
    remote_count: usize,
}

#[repr(C)]
struct Name {
    device: u64,
    name: Text,
}

type Open = unsafe extern "C" fn(*const Setting, usize) -> *mut Engine;
type Add = unsafe extern "C" fn(*const Engine, c_int, Stretch, Text, *mut *mut Object) -> c_int;
type Query = unsafe extern "C" fn(*const Engine, *const Name, usize, *mut u8) -> c_int;

/// What the shim calls.
#[repr(C)]
pub struct Calls {
    release: Text,
    setting_names: *const Text,
    setting_count: usize,
    has_device_memory: extern "C" fn() -> c_int,
    open: Open,
    close: unsafe extern "C" fn(*mut Engine),
    add: Add,
    remove: unsafe extern "C" fn(*const Engine, *mut Object) -> c_int,
    prepare: unsafe extern "C" fn(*const Engine, *const Transfer, *mut *mut Prepared) -> c_int,
    post: unsafe extern "C" fn(*const Engine, *const Prepared) -> c_int,
    check: unsafe extern "C" fn(*const Prepared) -> c_int,
    release_prepared: unsafe extern "C" fn(*mut Prepared),
    query: Query,
}

// SAFETY: it is a constant.
unsafe impl Sync for Calls {}

const fn text(text: &'static str) -> Text {
    Text { data: text.as_ptr().cast(), length: text.len() }
}

/// Ends with a NUL: NIXL wants it as C has texts.
const RELEASE: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");

static SETTING_NAMES: [Text; NAMES.len()] = {
    let mut names = [text(""); NAMES.len()];
    let mut at = 0;
    while at < NAMES.len() {
        names[at] = text(NAMES[at]);
        at += 1;
    }
    names
};

static CALLS: Calls = Calls {
    release: text(RELEASE),
    setting_names: SETTING_NAMES.as_ptr(),
    setting_count: SETTING_NAMES.len(),
    has_device_memory,
    open,
    close,
    add,
    remove,
    prepare,
    post,
    check,
    release_prepared,
    query,
};

unsafe extern "C" {
    fn memkv_nixl_plugin(calls: *const Calls) -> *mut c_void;
}

/// What NIXL calls when it has loaded the library: gives the table of the plug-in, or NULL.
#[unsafe(no_mangle)]
pub extern "C" fn nixl_plugin_init() -> *mut c_void {
    if catch_unwind(core::look).is_ok_and(|core| core == Core::TooOld) {
        say(
            "this NIXL is older than 1.0, and its backends have other functions: nothing is loaded",
        );
        return std::ptr::null_mut();
    }
    // SAFETY: the calls are a constant, and have the types that the shim declares.
    unsafe { memkv_nixl_plugin(&raw const CALLS) }
}

/// What NIXL calls when it needs the library no more. It is never unloaded.
#[unsafe(no_mangle)]
pub extern "C" fn nixl_plugin_fini() {}

/// Answers with a status; a refusal is said, and a panic is a failure.
fn guard(call: impl FnOnce() -> Result<Status, Refusal>) -> c_int {
    let status = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(status)) => status,
        Ok(Err(refusal)) => {
            say(&one_line(&refusal));
            refusal.status()
        }
        Err(_) => {
            say("a fault of this plug-in, told above");
            Status::Backend
        }
    };
    status as c_int
}

/// # Safety
/// NULL, or it was made by [`lend`] and not taken back.
unsafe fn lent<'a, T>(what: &'static str, pointer: *const T) -> Result<&'a T, Refusal> {
    // SAFETY: the caller's promise; it is only ever shared.
    unsafe { pointer.as_ref() }.ok_or(Refusal::Nothing(what))
}

/// # Safety
/// NULL or nothing, or `count` of them are there for as long as `'a`.
unsafe fn list<'a, T>(first: *const T, count: usize) -> &'a [T] {
    if first.is_null() || count == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(first, count) }
}

/// # Safety
/// It is there for as long as `'a`.
unsafe fn bytes<'a>(text: Text) -> &'a [u8] {
    // SAFETY: the caller's promise.
    unsafe { list(text.data.cast(), text.length) }
}

extern "C" fn has_device_memory() -> c_int {
    catch_unwind(device::driver).is_ok_and(|driver| driver.is_some()).into()
}

unsafe extern "C" fn open(settings: *const Setting, count: usize) -> *mut Engine {
    let open = || -> Result<Engine, String> {
        let mut given = Vec::with_capacity(count);
        // SAFETY: the shim's promise.
        for Setting { name, value } in unsafe { list(settings, count) } {
            // SAFETY: the shim's promise.
            let (name, value) = unsafe { (bytes(*name), bytes(*value)) };
            given.push((String::from_utf8_lossy(name), String::from_utf8_lossy(value)));
        }
        let given = given.iter().map(|(name, value)| (&**name, &**value));
        let variable = |name: &str| std::env::var(name).ok();
        let settings = Settings::new(given, variable).map_err(|error| one_line(&error))?;
        Engine::new(settings, device::driver()).map_err(|error| one_line(&error))
    };
    match catch_unwind(AssertUnwindSafe(open)) {
        Ok(Ok(engine)) => Box::into_raw(Box::new(engine)),
        Ok(Err(sentence)) => {
            say(&format!("no backend can be made: {sentence}"));
            std::ptr::null_mut()
        }
        Err(_) => std::ptr::null_mut(),
    }
}

unsafe extern "C" fn close(engine: *mut Engine) {
    guard(|| {
        // SAFETY: the shim's promise: `open` made it, and this is the end of it.
        drop(unsafe { Box::from_raw(engine) });
        Ok(Status::Ok)
    });
}

unsafe extern "C" fn add(
    engine: *const Engine,
    kind: c_int,
    stretch: Stretch,
    name: Text,
    registered: *mut *mut Object,
) -> c_int {
    guard(|| {
        // SAFETY: the shim's promise.
        let (engine, name) = unsafe { (lent("backend", engine)?, bytes(name)) };
        let object = engine.add(kind, stretch.device, name)?;
        let pointer = object.map_or(std::ptr::null_mut(), |object| Box::into_raw(Box::new(object)));
        // SAFETY: the shim gives a place for it.
        unsafe { *registered = pointer };
        Ok(Status::Ok)
    })
}

unsafe extern "C" fn remove(engine: *const Engine, registered: *mut Object) -> c_int {
    guard(|| {
        if !registered.is_null() {
            // SAFETY: the shim's promise: `add` made it, and this is the end of it.
            let (engine, object) = unsafe { (lent("backend", engine)?, Box::from_raw(registered)) };
            engine.remove(&object);
        }
        Ok(Status::Ok)
    })
}

/// # Safety
/// The shim's promise.
unsafe fn ends(first: *const Stretch, count: usize) -> Vec<End> {
    let end = |stretch: &Stretch| {
        let Stretch { address, length, device } = *stretch;
        End { address, length, device }
    };
    // SAFETY: the caller's promise.
    unsafe { list(first, count) }.iter().map(end).collect()
}

unsafe extern "C" fn prepare(
    engine: *const Engine,
    transfer: *const Transfer,
    prepared: *mut *mut Prepared,
) -> c_int {
    guard(|| {
        // SAFETY: the shim's promise.
        let (engine, given) = unsafe { (lent("backend", engine)?, lent("transfer", transfer)?) };
        let direction = match given.direction {
            0 => Direction::Read,
            1 => Direction::Write,
            other => return Err(Refusal::Direction(other)),
        };
        // SAFETY: the shim's promise.
        let (locals, remotes) = unsafe {
            (ends(given.locals, given.local_count), ends(given.remotes, given.remote_count))
        };
        let made = engine.prepare(
            direction,
            (given.local_kind, &locals),
            (given.remote_kind, &remotes),
        )?;
        // SAFETY: the shim gives a place for it.
        unsafe { *prepared = Box::into_raw(Box::new(made)) };
        Ok(Status::Ok)
    })
}

unsafe extern "C" fn post(engine: *const Engine, prepared: *const Prepared) -> c_int {
    guard(|| {
        // SAFETY: the shim's promise.
        let (engine, prepared) = unsafe { (lent("backend", engine)?, lent("transfer", prepared)?) };
        engine.post(prepared)?;
        Ok(Status::InProgress)
    })
}

unsafe extern "C" fn check(prepared: *const Prepared) -> c_int {
    // SAFETY: the shim's promise.
    guard(|| Ok(unsafe { lent("transfer", prepared)? }.status()))
}

unsafe extern "C" fn release_prepared(prepared: *mut Prepared) {
    guard(|| {
        if !prepared.is_null() {
            // SAFETY: the shim's promise: `prepare` made it, and this is the end of it.
            drop(unsafe { Box::from_raw(prepared) });
        }
        Ok(Status::Ok)
    });
}

unsafe extern "C" fn query(
    engine: *const Engine,
    names: *const Name,
    count: usize,
    there: *mut u8,
) -> c_int {
    guard(|| {
        // SAFETY: the shim's promise.
        let (engine, names) = unsafe { (lent("backend", engine)?, list(names, count)) };
        // SAFETY: the shim's promise.
        let name = |name: &Name| (name.device, unsafe { bytes(name.name) });
        let names: Vec<(u64, &[u8])> = names.iter().map(name).collect();
        for (at, found) in engine.query(&names)?.into_iter().enumerate() {
            // SAFETY: the shim gives a place for each of them.
            unsafe { *there.add(at) = found.into() };
        }
        Ok(Status::Ok)
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_full_disk_under_standard_error_ends_nobody() {
        /// Set for the process whose standard error is full.
        const INSIDE: &str = "MEMKV_NIXL_FULL";
        let name = "edge::tests::a_full_disk_under_standard_error_ends_nobody";
        if std::env::var_os(INSIDE).is_some() {
            // SAFETY: NULL is what the function looks for.
            let answer = unsafe { check(std::ptr::null()) };
            assert_eq!(answer, Status::InvalidParam as c_int);
            return;
        }
        let full = File::options().write(true).open("/dev/full").expect("a full device");
        let mut child = Command::new(std::env::current_exe().expect("a path"));
        child.args(["--exact", name, "--nocapture"]).env(INSIDE, "yes").stderr(full);
        let ended = child.output().expect("it runs");
        assert!(ended.status.success(), "{ended:?}");
        assert!(String::from_utf8_lossy(&ended.stdout).contains("1 passed"), "{ended:?}");
    }
}
