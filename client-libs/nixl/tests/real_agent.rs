//! The real NIXL, loaded at run time, with the library that cargo built as its plug-in.
//!
//! nixl-sys opens `libnixl_capi.so` when it is first used. Where the loader does not find it (LD_LIBRARY_PATH
//! names the folder of NIXL's wheel) these tests say so and do nothing, unless `MEMKV_NIXL_REQUIRED` is set.

use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use memkv_node::config::{Config, Overrides};
use memkv_node::node::Node;
use memkv_node::paths::ThisMachine;
use nixl_sys::{
    Agent, MemType, MemoryRegion, NixlDescriptor, NixlError, NixlRegistration, OptArgs, Params,
    RegDescList, RegistrationHandle, SystemStorage, XferDescList, XferOp, XferRequest,
};

const CONFIG: &str = "
network: {address: '127.0.0.1:0'}
memory: {max_size: 128 MiB, hugepages: never}
storage: {mode: memory, drives: [{max_size: 512 MiB}]}
node: {reactors: 1}
";
const SIZE: usize = 1 << 20;
const COUNT: usize = 4;
/// Far longer than a transfer takes.
const LONG: Duration = Duration::from_secs(30);
/// Set for the process in which a test runs for real.
const INSIDE: &str = "MEMKV_NIXL_INSIDE";

/// An object, whose key is its number.
#[derive(Debug)]
struct Object(u64);

impl MemoryRegion for Object {
    unsafe fn as_ptr(&self) -> *const u8 {
        std::ptr::null()
    }

    fn size(&self) -> usize {
        SIZE
    }
}

impl NixlDescriptor for Object {
    fn mem_type(&self) -> MemType {
        MemType::Object
    }

    fn device_id(&self) -> u64 {
        self.0
    }
}

/// Runs a test in a process of its own that looks for plug-ins where ours is; false in the process that
/// started it, and where there is no NIXL.
fn is_inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if nixl_sys::is_stub() {
        let text = "no libnixl_capi.so is found by the loader";
        assert!(std::env::var_os("MEMKV_NIXL_REQUIRED").is_none(), "{text}");
        eprintln!("SKIPPED {test}: {text}");
        return false;
    }
    let own = std::env::current_exe().expect("a path");
    let plugins = tempfile::tempdir().expect("a folder");
    let library: PathBuf = own.with_file_name("libplugin_MEMKV.so");
    std::fs::copy(library, plugins.path().join("libplugin_MEMKV.so")).expect("the plug-in");
    let mut child = Command::new(own);
    child.args(["--exact", test, "--nocapture"]).env(INSIDE, "yes");
    let status = child.env("NIXL_PLUGIN_DIR", plugins.path()).status().expect("it runs");
    assert!(status.success(), "{status}");
    false
}

/// A node, and an agent that knows it.
struct World {
    agent: Agent,
    options: OptArgs,
    _node: Node,
}

impl World {
    fn new() -> World {
        let config = Config::parse(CONFIG, &Overrides::default(), &ThisMachine)
            .unwrap_or_else(|error| panic!("{error}"));
        let node = Node::start(config, &(Rc::new(|_: &str, _, _| ()) as _)).expect("a node");
        let address = node.address().to_string();
        let agent = Agent::new("real-agent").expect("an agent");
        // The machines of tests are slow at times.
        let settings = [("servers", &*address), ("connect_timeout_ms", "60000")];
        let settings = Params::from(settings).expect("settings");
        let backend = agent.create_backend("MEMKV", &settings).expect("a backend");
        let mut options = OptArgs::new().expect("options");
        options.add_backend(&backend).expect("options of a backend");
        World { agent, options, _node: node }
    }

    fn memory(&self, seed: usize) -> SystemStorage {
        let mut memory = SystemStorage::new(COUNT * SIZE).expect("memory");
        memory.memset(seed as u8);
        memory.register(&self.agent, Some(&self.options)).expect("registered");
        memory
    }

    fn object(&self, number: u64) -> Result<RegistrationHandle, NixlError> {
        self.agent.register_memory(&Object(number), Some(&self.options))
    }

    fn request(&self, operation: XferOp, memory: &SystemStorage, first: u64) -> XferRequest {
        let mut local = XferDescList::new(MemType::Dram).expect("a list");
        let mut remote = XferDescList::new(MemType::Object).expect("a list");
        for at in 0..COUNT {
            let address = memory.as_slice().as_ptr() as usize + at * SIZE;
            local.add_desc(address, SIZE, memory.device_id());
            remote.add_desc(0, SIZE, first + at as u64);
        }
        let options = Some(&self.options);
        self.agent
            .create_xfer_req(operation, &local, &remote, "real-agent", options)
            .expect("a request")
    }

    fn carry_out(&self, request: &XferRequest) -> Result<(), NixlError> {
        let began = Instant::now();
        let mut pending = self.agent.post_xfer_req(request, Some(&self.options))?;
        while pending {
            assert!(began.elapsed() < LONG, "it ends");
            pending = !self.agent.get_xfer_status(request)?.is_success();
            std::thread::yield_now();
        }
        Ok(())
    }

    fn there(&self, numbers: &[u64]) -> Vec<bool> {
        let mut asked = RegDescList::new(MemType::Object).expect("a list");
        numbers.iter().for_each(|number| asked.add_desc(0, SIZE, *number));
        let answers = self.agent.query_mem(&asked, Some(&self.options)).expect("answers");
        let known = answers.iter().expect("answers");
        known.map(|answer| answer.has_value().expect("an answer")).collect()
    }
}

#[test]
fn objects_go_there_and_back_by_their_numbers() {
    if !is_inside("objects_go_there_and_back_by_their_numbers") {
        return;
    }
    let world = World::new();
    let (mut source, target) = (world.memory(0x5a), world.memory(0));
    let first = 0x1000;
    let known: Result<Vec<_>, _> =
        (first..first + COUNT as u64).map(|number| world.object(number)).collect();
    let known = known.expect("registered");
    assert_eq!(world.there(&[first, first + 1]), [false, false]);
    let write = world.request(XferOp::Write, &source, first);
    world.carry_out(&write).expect("written");
    assert_eq!(world.there(&[first, first + 3, first + 4]), [true, true, false]);
    let read = world.request(XferOp::Read, &target, first);
    world.carry_out(&read).expect("read");
    assert_eq!(target.as_slice(), source.as_slice());
    // The same requests again, of other bytes.
    source.memset(0xc3);
    world.carry_out(&write).expect("written again");
    world.carry_out(&read).expect("read again");
    assert!(target.as_slice().iter().all(|byte| *byte == 0xc3));
    drop((write, read, known));
}

#[test]
fn absent_objects_are_an_error_and_a_request_may_be_dropped_under_way() {
    let name = "absent_objects_are_an_error_and_a_request_may_be_dropped_under_way";
    if !is_inside(name) {
        return;
    }
    let world = World::new();
    let memory = world.memory(7);
    let known: Result<Vec<_>, _> = (1..=COUNT as u64).map(|number| world.object(number)).collect();
    let known = known.expect("registered");
    let read = world.request(XferOp::Read, &memory, 1);
    assert!(world.carry_out(&read).is_err(), "there is nothing to read");
    assert!(memory.as_slice().iter().all(|byte| *byte == 7));
    for _ in 0..20 {
        let write = world.request(XferOp::Write, &memory, 1);
        world.agent.post_xfer_req(&write, Some(&world.options)).expect("posted");
        drop(write);
    }
    let write = world.request(XferOp::Write, &memory, 1);
    world.carry_out(&write).expect("written");
    let read = world.request(XferOp::Read, &memory, 1);
    world.carry_out(&read).expect("read");
    drop((write, read, known));
}
