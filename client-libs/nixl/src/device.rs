//! Memory of GPUs, by the CUDA driver that is there at run time, or is not.
//!
//! Nothing of CUDA is needed to build this: the driver's library is opened when NIXL first asks which kinds of
//! memory we serve. Where there is none, or no GPU, device memory is not offered and host memory works as ever.
//! A GPU is used by its primary context, the one that PyTorch and its like use.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{CStr, c_int, c_uint, c_void};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::memory::Region;

/// What moves bytes between the host and a GPU.
pub(crate) trait Device: Send + Sync {
    /// Memory of the host that all GPUs reach without the processor. It is never given back. This GPU is in
    /// use already: another one would be asked for some hundred MiB of its own memory.
    fn pinned(&self, gpu: u64, length: usize) -> Result<Region, DeviceError>;

    /// Copies into a GPU's memory, and waits for it.
    ///
    /// # Safety
    /// There are `from.len()` bytes at `address` of this GPU, and nobody else uses them meanwhile.
    unsafe fn fill(&self, gpu: u64, address: usize, from: &[u8]) -> Result<(), DeviceError>;

    /// Copies out of a GPU's memory, and waits for it.
    ///
    /// # Safety
    /// There are `into.len()` bytes at `address` of this GPU, and nobody changes them meanwhile.
    unsafe fn take(&self, gpu: u64, address: usize, into: &mut [u8]) -> Result<(), DeviceError>;
}

/// What the driver has against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the CUDA driver's {call} answered {code}")]
pub(crate) struct DeviceError {
    /// The function.
    pub call: &'static str,
    /// Its number for what is wrong.
    pub code: i32,
}

/// The driver of this machine; `None` where there is none, or no GPU.
pub(crate) fn driver() -> Option<&'static dyn Device> {
    static DRIVER: OnceLock<Option<Cuda>> = OnceLock::new();
    DRIVER.get_or_init(Cuda::open).as_ref().map(|cuda| cuda as &dyn Device)
}

type Context = *mut c_void;
type Init = unsafe extern "C" fn(c_uint) -> c_int;
type Count = unsafe extern "C" fn(*mut c_int) -> c_int;
type DeviceGet = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
type Retain = unsafe extern "C" fn(*mut Context, c_int) -> c_int;
type Push = unsafe extern "C" fn(Context) -> c_int;
type Pop = unsafe extern "C" fn(*mut Context) -> c_int;
type HostAlloc = unsafe extern "C" fn(*mut *mut c_void, usize, c_uint) -> c_int;
type CopyIn = unsafe extern "C" fn(u64, *const c_void, usize) -> c_int;
type CopyOut = unsafe extern "C" fn(*mut c_void, u64, usize) -> c_int;

/// The functions that are used, as the driver's documentation declares them.
struct Cuda {
    device_get: DeviceGet,
    retain: Retain,
    push: Push,
    pop: Pop,
    host_alloc: HostAlloc,
    copy_in: CopyIn,
    copy_out: CopyOut,
    /// Primary contexts by the number of their GPU, as addresses; kept for as long as the process lives.
    contexts: Mutex<HashMap<u64, usize>>,
}

/// Pinned for all contexts.
const PORTABLE: c_uint = 1;
/// What the driver calls a number that no GPU has.
const INVALID_DEVICE: i32 = 101;

fn told(call: &'static str, code: c_int) -> Result<(), DeviceError> {
    match code {
        0 => Ok(()),
        code => Err(DeviceError { call, code }),
    }
}

impl Cuda {
    fn open() -> Option<Cuda> {
        // SAFETY: the name ends with a NUL; opening the driver's library runs what it brings along, which is
        // made for that. It stays open.
        let library = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW) };
        if library.is_null() {
            return None;
        }
        let find = |name: &CStr| {
            // SAFETY: the library is open, the name ends with a NUL.
            let found = unsafe { libc::dlsym(library, name.as_ptr()) };
            (!found.is_null()).then_some(found)
        };
        // SAFETY: these functions have had these types since the versions that their names carry.
        let (init, count, cuda) = unsafe {
            use std::mem::transmute as typed;
            let init = typed::<*mut c_void, Init>(find(c"cuInit")?);
            let count = typed::<*mut c_void, Count>(find(c"cuDeviceGetCount")?);
            let cuda = Cuda {
                device_get: typed::<*mut c_void, DeviceGet>(find(c"cuDeviceGet")?),
                retain: typed::<*mut c_void, Retain>(find(c"cuDevicePrimaryCtxRetain")?),
                push: typed::<*mut c_void, Push>(find(c"cuCtxPushCurrent_v2")?),
                pop: typed::<*mut c_void, Pop>(find(c"cuCtxPopCurrent_v2")?),
                host_alloc: typed::<*mut c_void, HostAlloc>(find(c"cuMemHostAlloc")?),
                copy_in: typed::<*mut c_void, CopyIn>(find(c"cuMemcpyHtoD_v2")?),
                copy_out: typed::<*mut c_void, CopyOut>(find(c"cuMemcpyDtoH_v2")?),
                contexts: Mutex::default(),
            };
            (init, count, cuda)
        };
        let mut gpus = 0;
        // SAFETY: both are called as they are declared.
        let ready = unsafe { init(0) == 0 && count(&raw mut gpus) == 0 };
        (ready && gpus > 0).then_some(cuda)
    }

    fn context(&self, gpu: u64) -> Result<Context, DeviceError> {
        let mut contexts = self.contexts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = contexts.get(&gpu) {
            return Ok(*known as Context);
        }
        let bad = DeviceError { call: "cuDeviceGet", code: INVALID_DEVICE };
        let number = c_int::try_from(gpu).map_err(|_| bad)?;
        let (mut device, mut context) = (0, std::ptr::null_mut());
        // SAFETY: both are called as they are declared, with places for what they give.
        unsafe {
            told("cuDeviceGet", (self.device_get)(&raw mut device, number))?;
            told("cuDevicePrimaryCtxRetain", (self.retain)(&raw mut context, device))?;
        }
        contexts.insert(gpu, context as usize);
        Ok(context)
    }

    /// Does something with a GPU's context on this thread.
    fn within<T>(
        &self,
        gpu: u64,
        call: impl FnOnce() -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        let context = self.context(gpu)?;
        // SAFETY: the context was retained and is never released.
        told("cuCtxPushCurrent", unsafe { (self.push)(context) })?;
        let result = call();
        let mut before = std::ptr::null_mut();
        // SAFETY: it was pushed above.
        told("cuCtxPopCurrent", unsafe { (self.pop)(&raw mut before) })?;
        result
    }
}

impl Device for Cuda {
    fn pinned(&self, gpu: u64, length: usize) -> Result<Region, DeviceError> {
        self.within(gpu, || {
            let mut memory = std::ptr::null_mut();
            // SAFETY: it is called as it is declared, within a context.
            told("cuMemHostAlloc", unsafe {
                (self.host_alloc)(&raw mut memory, length, PORTABLE)
            })?;
            let nothing = DeviceError { call: "cuMemHostAlloc", code: 0 };
            Region::new(memory as usize, length).ok_or(nothing)
        })
    }

    unsafe fn fill(&self, gpu: u64, address: usize, from: &[u8]) -> Result<(), DeviceError> {
        self.within(gpu, || {
            let (first, length) = (from.as_ptr().cast(), from.len());
            // SAFETY: the caller's promise for the GPU's side; the host's is a slice.
            told("cuMemcpyHtoD", unsafe { (self.copy_in)(address as u64, first, length) })
        })
    }

    unsafe fn take(&self, gpu: u64, address: usize, into: &mut [u8]) -> Result<(), DeviceError> {
        self.within(gpu, || {
            let (first, length) = (into.as_mut_ptr().cast(), into.len());
            // SAFETY: the caller's promise for the GPU's side; the host's is a slice.
            told("cuMemcpyDtoH", unsafe { (self.copy_out)(first, address as u64, length) })
        })
    }
}

/// A stand-in for the driver, whose GPUs' memory is the host's.
#[cfg(test)]
pub(crate) mod stand_in {
    use super::*;

    /// The only GPU that it has.
    pub const GPU: u64 = 3;

    pub struct StandIn;

    fn check(gpu: u64) -> Result<(), DeviceError> {
        match gpu {
            GPU => Ok(()),
            _ => Err(DeviceError { call: "cuDeviceGet", code: INVALID_DEVICE }),
        }
    }

    impl Device for StandIn {
        fn pinned(&self, gpu: u64, length: usize) -> Result<Region, DeviceError> {
            check(gpu)?;
            let memory: &'static mut [u8] = vec![0; length].leak();
            Ok(Region::new(memory.as_mut_ptr() as usize, length).expect("memory"))
        }

        unsafe fn fill(&self, gpu: u64, address: usize, from: &[u8]) -> Result<(), DeviceError> {
            check(gpu)?;
            let memory = Region::new(address, from.len()).expect("memory");
            // SAFETY: the caller's promise.
            unsafe { memory.bytes_mut(0).copy_from_slice(from) };
            Ok(())
        }

        unsafe fn take(
            &self,
            gpu: u64,
            address: usize,
            into: &mut [u8],
        ) -> Result<(), DeviceError> {
            check(gpu)?;
            let memory = Region::new(address, into.len()).expect("memory");
            // SAFETY: the caller's promise.
            into.copy_from_slice(unsafe { memory.bytes(0) });
            Ok(())
        }
    }
}
