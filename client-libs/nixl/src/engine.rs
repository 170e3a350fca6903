//! One backend: registrations, transfers and lookups of one NIXL agent.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use memkv_client::{Client, Descriptor, Plan, PutOptions};

use crate::device::Device;
use crate::memory::Region;
use crate::settings::Settings;
use crate::staging::Staging;
use crate::status::Refusal;
use crate::transfer::{Direction, Place, Prepared, Work};
use crate::workers::Workers;

/// Bytes of a key.
const KEY_MAX: usize = 512;

/// NIXL's numbers of kinds of memory.
pub(crate) mod kind {
    /// Of the host.
    pub const DRAM: i32 = 0;
    /// Of a GPU.
    pub const VRAM: i32 = 1;
    /// Objects.
    pub const OBJECT: i32 = 3;
}

/// An object that is registered.
#[derive(Debug)]
pub(crate) struct Object {
    device: u64,
}

/// A device id in use: its key, and how many registrations there are.
struct Live {
    key: Arc<[u8]>,
    count: usize,
}

/// One end of a descriptor of a transfer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    /// Where it is in memory, or in the object.
    pub address: usize,
    /// Bytes.
    pub length: usize,
    /// Where the memory is, or which object it is.
    pub device: u64,
}

/// See the module.
pub(crate) struct Engine {
    client: Client,
    options: PutOptions,
    objects: Mutex<HashMap<u64, Live>>,
    workers: Workers,
    /// For memory of GPUs, where there are any.
    staging: Option<Arc<Staging>>,
}

impl Engine {
    /// Talks to nobody yet.
    pub fn new(settings: Settings, device: Option<&'static dyn Device>) -> Result<Engine, Refusal> {
        let Settings { client, mode, staging } = settings;
        let client = Client::new(client)?;
        let options = PutOptions { mode, ..PutOptions::default() };
        let workers = Workers::new(&client);
        let staging = device.map(|device| Arc::new(Staging::new(device, staging)));
        Ok(Engine { client, options, objects: Mutex::default(), workers, staging })
    }

    /// Registers memory, which takes nothing, or an object.
    pub fn add(&self, kind: i32, device: u64, name: &[u8]) -> Result<Option<Object>, Refusal> {
        match kind {
            kind::DRAM => Ok(None),
            kind::VRAM if self.staging.is_some() => Ok(None),
            kind::OBJECT => self.add_object(device, name).map(Some),
            kind => {
                let more = if self.staging.is_some() { ", and VRAM_SEG is" } else { "" };
                Err(Refusal::Kind { kind, more })
            }
        }
    }

    fn add_object(&self, device: u64, name: &[u8]) -> Result<Object, Refusal> {
        let key = key_of(device, name)?;
        let key: Arc<[u8]> = key.into();
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        let live = match objects.entry(device) {
            Entry::Vacant(free) => free.insert(Live { key: key.clone(), count: 0 }),
            Entry::Occupied(taken) => taken.into_mut(),
        };
        if live.key != key {
            let readable = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
            return Err(Refusal::DeviceTaken {
                device,
                live: readable(&live.key),
                wanted: readable(&key),
            });
        }
        live.count += 1;
        Ok(Object { device })
    }

    /// The end of a registration.
    pub fn remove(&self, object: &Object) {
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut live) = objects.entry(object.device) {
            live.get_mut().count -= 1;
            if live.get().count == 0 {
                live.remove();
            }
        }
    }

    /// Makes a transfer of two lists.
    pub fn prepare(
        &self,
        direction: Direction,
        (local_kind, locals): (i32, &[End]),
        (remote_kind, remotes): (i32, &[End]),
    ) -> Result<Prepared, Refusal> {
        let staging = match (local_kind, &self.staging) {
            (kind::DRAM, _) if remote_kind == kind::OBJECT => None,
            (kind::VRAM, Some(staging)) if remote_kind == kind::OBJECT => Some(staging.clone()),
            _ => return Err(Refusal::Sides { local: local_kind, remote: remote_kind }),
        };
        if locals.len() != remotes.len() {
            return Err(Refusal::Counts { local: locals.len(), remote: remotes.len() });
        }
        let mut keys = Vec::with_capacity(locals.len());
        let mut memory = Vec::with_capacity(locals.len());
        let objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        for (descriptor, (local, remote)) in locals.iter().zip(remotes).enumerate() {
            let End { address, length, .. } = *local;
            if length != remote.length {
                let (local, remote) = (length, remote.length);
                return Err(Refusal::Lengths { descriptor, local, remote });
            }
            // No id has two keys, so it tells the object as well as its registration does, which NIXL has too.
            let object = objects.get(&remote.device).ok_or(Refusal::Unregistered { descriptor })?;
            let region = Region::new(address, length);
            memory.push(region.ok_or(Refusal::Memory { descriptor, address, length })?);
            keys.push(object.key.clone());
        }
        drop(objects);
        let descriptors: Vec<Descriptor<'_>> = locals
            .iter()
            .zip(remotes)
            .zip(&keys)
            .map(|((local, remote), key)| Descriptor {
                key,
                offset: remote.address as u64,
                length: local.length as u64,
                memory: local.address,
            })
            .collect();
        let plan = match direction {
            Direction::Read => {
                check_apart(&descriptors)?;
                Plan::of_reads(&descriptors)?
            }
            Direction::Write => Plan::of_writes(&descriptors)?,
        };
        if let Some(staging) = &staging {
            check_room(&plan, staging)?;
        }
        let place = match staging {
            None => Place::Host,
            Some(staging) => {
                Place::Gpu { staging, gpus: locals.iter().map(|local| local.device).collect() }
            }
        };
        let options = self.options;
        Ok(Prepared::new(Work { direction, keys, memory, place, plan, options }))
    }

    /// Starts a transfer.
    pub fn post(&self, prepared: &Prepared) -> Result<(), Refusal> {
        prepared.post(&self.client, &self.workers)
    }

    /// Which objects are stored, by their device ids and names; one lookup for all of them.
    pub fn query(&self, names: &[(u64, &[u8])]) -> Result<Vec<bool>, Refusal> {
        let keys: Result<Vec<_>, _> =
            names.iter().map(|(device, name)| key_of(*device, name)).collect();
        let keys = keys?;
        let keys: Vec<&[u8]> = keys.iter().map(AsRef::as_ref).collect();
        // A server that is gone has no objects, for who only looks; what it is told to do fails.
        Ok(self.client.exists(&keys)?)
    }
}

/// The key of an object: its name, or its device id in figures.
fn key_of(device: u64, name: &[u8]) -> Result<std::borrow::Cow<'_, [u8]>, Refusal> {
    match name.len() {
        0 => Ok(device.to_string().into_bytes().into()),
        1..=KEY_MAX => Ok(name.into()),
        length => Err(Refusal::BadKey { length }),
    }
}

/// Every run fits into staging memory by itself.
fn check_room(plan: &Plan, staging: &Staging) -> Result<(), Refusal> {
    let fits = |length| staging.needed(length) <= staging.count();
    match plan.runs.iter().map(|run| run.length).find(|length| !fits(*length)) {
        Some(length) => Err(Refusal::Staging { length, total: staging.count() * staging.slot() }),
        None => Ok(()),
    }
}

/// No memory is read into twice, unless it is the same bytes of the same object.
fn check_apart(descriptors: &[Descriptor<'_>]) -> Result<(), Refusal> {
    let mut order: Vec<usize> = (0..descriptors.len()).collect();
    order.sort_unstable_by_key(|at| descriptors[*at].memory);
    for pair in order.windows(2) {
        let (first, second) = (&descriptors[pair[0]], &descriptors[pair[1]]);
        if first.memory + first.length as usize > second.memory && first != second {
            return Err(Refusal::SharedMemory { first: pair[0], second: pair[1] });
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
