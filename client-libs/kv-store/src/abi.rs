//! The table of functions, and what stands between C and the rest.

#![allow(unsafe_code)]

use std::ffi::{c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

use memkv_client::{Config, one_line, tell};

use crate::error::StoreError;
use crate::memory::{self, Out};
use crate::store::Store;
use crate::uri;

/// What a consumer has of a handle: its address.
#[allow(non_camel_case_types)]
pub struct kv_store_v1 {
    store: Store,
}

/// The functions in the order of the interface; see `include/kv_store_v1.h`.
#[repr(C)]
#[derive(Debug)]
pub struct Vtable {
    version: u32,
    open: unsafe extern "C" fn(*const c_char) -> *mut kv_store_v1,
    close: unsafe extern "C" fn(*mut kv_store_v1),
    put_chunk: unsafe extern "C" fn(*mut kv_store_v1, *const u8, usize, *const u8, usize) -> c_int,
    get_chunk:
        unsafe extern "C" fn(*mut kv_store_v1, *const u8, usize, *mut *mut u8, *mut usize) -> c_int,
    put_manifest: unsafe extern "C" fn(*mut kv_store_v1, *const c_char, *const u8, usize) -> c_int,
    get_manifest:
        unsafe extern "C" fn(*mut kv_store_v1, *const c_char, *mut *mut u8, *mut usize) -> c_int,
    delete_manifest: unsafe extern "C" fn(*mut kv_store_v1, *const c_char) -> c_int,
    prefetch_chunks: unsafe extern "C" fn(*mut kv_store_v1, *const u8, usize, usize) -> c_int,
}

static VTABLE: Vtable = Vtable {
    version: 2,
    open,
    close,
    put_chunk,
    get_chunk,
    put_manifest,
    get_manifest,
    delete_manifest,
    prefetch_chunks,
};

/// The only function that the library exports.
// SAFETY: no other library of a consumer has this name: it asks each library for its own.
#[unsafe(no_mangle)]
pub extern "C" fn kv_store_get_vtable() -> *const Vtable {
    &raw const VTABLE
}

/// Makes a call for C. What fails is a number for the program, and a line for people unless it only is not there.
///
/// # Safety
/// `handle` is NULL, or was given by [`open`] and not closed yet.
unsafe fn guard(
    handle: *const kv_store_v1,
    what: &str,
    call: impl FnOnce(&Store) -> Result<(), StoreError>,
) -> c_int {
    // SAFETY: the caller's promise.
    let store = match unsafe { memory::handle(handle) } {
        Ok(handle) => &handle.store,
        Err(error) => return error.answer(),
    };
    match catch_unwind(AssertUnwindSafe(|| call(store))) {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => {
            if !matches!(error, StoreError::Absent) {
                say(store, &format!("memkv: kv_store {what}: {}", one_line(&error)));
            }
            error.answer()
        }
        // The panic has told its own line.
        Err(_) => StoreError::Poisoned.answer(),
    }
}

fn say(store: &Store, text: &str) {
    if store.is_news(text) {
        tell(text);
    }
}

unsafe extern "C" fn open(uri: *const c_char) -> *mut kv_store_v1 {
    let opened = catch_unwind(|| {
        // SAFETY: a text, or NULL (the header).
        let uri = unsafe { memory::text(uri) }.map(String::from_utf8_lossy);
        let uri = uri.unwrap_or_default();
        let refused = |error: &dyn std::error::Error| {
            tell(&format!("memkv: kv_store open `{uri}`: {}", one_line(error)));
        };
        let config = uri::config(&uri, Config::load).map_err(|error| refused(&error)).ok()?;
        let store = Store::open(config).map_err(|error| refused(&error)).ok()?;
        Some(memory::lend(kv_store_v1 { store }))
    });
    opened.ok().flatten().unwrap_or(std::ptr::null_mut())
}

unsafe extern "C" fn close(handle: *mut kv_store_v1) {
    // SAFETY: a handle of ours, or NULL (the header).
    let _ = unsafe {
        match handle.is_null() {
            true => 0,
            false => {
                guard(handle, "close: chunks without a manifest were not stored", Store::close)
            }
        }
    };
    // SAFETY: the same; nobody uses it any more.
    drop(unsafe { memory::take_back(handle) });
}

unsafe extern "C" fn put_chunk(
    handle: *mut kv_store_v1,
    hash: *const u8,
    hash_length: usize,
    data: *const u8,
    length: usize,
) -> c_int {
    // SAFETY: a handle of ours, and as many bytes as are told (the header).
    unsafe {
        guard(handle, "put_chunk", |store| {
            let hash = memory::bytes(hash, hash_length)?;
            store.put_chunk(hash, memory::bytes(data, length)?)
        })
    }
}

unsafe extern "C" fn get_chunk(
    handle: *mut kv_store_v1,
    hash: *const u8,
    hash_length: usize,
    out: *mut *mut u8,
    out_length: *mut usize,
) -> c_int {
    // SAFETY: a handle of ours, as many bytes as are told, and places for the answer (the header).
    unsafe {
        guard(handle, "get_chunk", |store| {
            let out = Out::new(out, out_length)?;
            out.give(store.get_chunk(memory::bytes(hash, hash_length)?)?);
            Ok(())
        })
    }
}

unsafe extern "C" fn put_manifest(
    handle: *mut kv_store_v1,
    name: *const c_char,
    data: *const u8,
    length: usize,
) -> c_int {
    // SAFETY: a handle of ours, a text, and as many bytes as are told (the header).
    unsafe {
        guard(handle, "put_manifest", |store| {
            store.put_manifest(memory::text(name)?, memory::bytes(data, length)?)
        })
    }
}

unsafe extern "C" fn get_manifest(
    handle: *mut kv_store_v1,
    name: *const c_char,
    out: *mut *mut u8,
    out_length: *mut usize,
) -> c_int {
    // SAFETY: a handle of ours, a text, and places for the answer (the header).
    unsafe {
        guard(handle, "get_manifest", |store| {
            let out = Out::new(out, out_length)?;
            out.give(store.get_manifest(memory::text(name)?)?);
            Ok(())
        })
    }
}

unsafe extern "C" fn delete_manifest(handle: *mut kv_store_v1, name: *const c_char) -> c_int {
    // SAFETY: a handle of ours, and a text (the header).
    unsafe { guard(handle, "delete_manifest", |store| store.delete_manifest(memory::text(name)?)) }
}

unsafe extern "C" fn prefetch_chunks(
    handle: *mut kv_store_v1,
    hashes: *const u8,
    hash_length: usize,
    count: usize,
) -> c_int {
    // SAFETY: a handle of ours, and as many bytes as are told (the header).
    unsafe {
        guard(handle, "prefetch_chunks", |store| {
            let length = hash_length.saturating_mul(count);
            store.prefetch(memory::bytes(hashes, length)?, hash_length)
        })
    }
}
