//! A node on NVMe drives that it drives itself, with models of controllers in place of drives: what is
//! stored is found again after a stop, a crash, a reset and the loss of a drive.

mod common;

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Wire, value};
use memkv_admin_api::{DriveState, NodeAdmin, NodeStatus};
use memkv_block::{BlockDevice, IoError, watch};
use memkv_dma::{Class, Hugepages, Pool, PoolConfig};
use memkv_node::bypass::Bypass;
use memkv_node::config::{Config, Overrides};
use memkv_node::node::{Devices, Node};
use memkv_node::paths::ThisMachine;
use memkv_nvme::model::{Fault, ModelConfig, ModelLink, SharedModel};
use memkv_nvme::{Nvme, Options, Sysfs, open};
use memkv_poller::{Reactor, ReactorConfig, Rng, SystemClock};
use memkv_wire::{MissReason, PutMode, Status};

const MIB: u64 = 1 << 20;

/// Longer than any machine is too busy for.
const LIMIT: Duration = Duration::from_secs(300);

/// Drives, which outlive the nodes that use them.
struct Site(Vec<SharedModel>);

/// A drive, by its place.
fn model(n: usize) -> SharedModel {
    named_model(&format!("0000:0{n}:00.0"), &format!("MODEL{n}"))
}

fn named_model(name: &str, serial: &str) -> SharedModel {
    let (name, serial) = (name.to_owned(), serial.to_owned());
    let config = ModelConfig { name, serial, timeout: 255, ..ModelConfig::new(96 * MIB) };
    ModelLink::with_thread(config).1
}

/// A node on drives that are opened for it.
fn start(text: &str, open: impl FnOnce(&Pool, &Bypass) -> Devices) -> Node {
    let overrides = Overrides { address: Some("127.0.0.1:0".into()), ..Overrides::default() };
    let config = Config::parse(text, &overrides, &ThisMachine).expect("a good configuration");
    Node::start_on(config, |_, pool, bypass| Ok(open(pool, bypass))).expect("the node starts")
}

/// Brings the controller of a drive up; how long a command may go unanswered before the driver does something
/// about it.
fn open_model(model: &SharedModel, pool: &Pool, command_limit: Duration) -> Arc<Nvme> {
    let options = Options {
        command_limit,
        admin_limit: LIMIT,
        hugepages: Hugepages::Never,
        ..Options::new(4)
    };
    open(ModelLink::again(model), pool, Arc::new(SystemClock), options).expect("the model comes up")
}

impl Site {
    fn new(drives: usize) -> Site {
        Site((0..drives).map(model).collect())
    }

    /// A node on these drives, each with a controller that is brought up anew.
    fn start(&self, more: &str) -> Node {
        self.start_with(more, LIMIT)
    }

    /// The same; how long a command may go unanswered before the driver does something about it.
    fn start_with(&self, more: &str, command_limit: Duration) -> Node {
        self.start_beside(more, command_limit, |_, _| ())
    }

    /// The same, once `before` has opened something beside.
    fn start_beside(
        &self,
        more: &str,
        command_limit: Duration,
        before: impl FnOnce(&Pool, &Bypass),
    ) -> Node {
        let text = format!(
            "memory: {{max_size: 64 MiB, hugepages: never}}\nnode: {{reactors: 2{more}}}\n\
             storage: {{mode: file, durability: power, drives: [{{media: /models, max_size: 1 GiB}}]}}\n"
        );
        start(&text, |pool, bypass| {
            before(pool, bypass);
            let device = |model| -> Arc<dyn BlockDevice> {
                let drive = open_model(model, pool, command_limit);
                bypass.note(&drive);
                watch(drive, 2 * LIMIT)
            };
            self.0.iter().map(device).collect()
        })
    }

    /// What drivers have done that no drive would have stood for.
    fn offences(&self) -> u64 {
        self.0.iter().map(|model| model.lock().stats().offences).sum()
    }
}

/// Values of all kinds: in one command, in several, in several extents.
fn values() -> Vec<(Vec<u8>, Vec<u8>)> {
    let lengths = [1, 5_000, 16 << 10, 200_000, (1 << 20) + 1, (9 << 20) + 12_345];
    let value = |(n, length): (usize, &usize)| (vec![b'k', n as u8], value(n as u8, *length));
    lengths.iter().enumerate().map(value).collect()
}

fn put_all(node: &Node) {
    let mut wire = Wire::connect(node);
    for (key, bytes) in values() {
        let stored = match bytes.len() {
            inline if inline <= 256 << 10 => wire.put(&key, &bytes, PutMode::Absent),
            _ => wire.put_large(&key, &bytes),
        };
        assert_eq!(stored.status, Status::Ok, "{stored:?}");
    }
}

#[track_caller]
fn check_all(node: &Node) {
    let mut wire = Wire::connect(node);
    for (key, bytes) in values() {
        let (reply, back) = wire.get(&key);
        assert_eq!(reply.status, Status::Ok, "{key:?}");
        assert!(back == bytes, "{key:?} differs");
    }
}

/// Waits for what happens without anybody asking for it.
fn wait_for(node: &Node, what: &str, mut is_so: impl FnMut(&NodeStatus) -> bool) -> NodeStatus {
    let begun = Instant::now();
    loop {
        let status = node.admin().status();
        // A reactor that has no time for an answer leaves them out.
        if !status.drives.is_empty() && is_so(&status) {
            return status;
        }
        assert!(begun.elapsed() < LIMIT, "{what}: {status:?}");
        std::thread::yield_now();
    }
}

#[test]
fn what_is_stored_is_there_after_a_stop_and_a_start() {
    let site = Site::new(2);
    for idle in ["", ", idle: busy"] {
        let node = site.start(idle);
        if idle.is_empty() {
            put_all(&node);
        }
        check_all(&node);
        let status = node.admin().status();
        for drive in &status.drives {
            assert_eq!((&*drive.driver, drive.state), ("nvme", DriveState::Online));
            let nvme = drive.nvme.as_ref().expect("its controller is told of");
            assert_eq!((&*nvme.model, nvme.resets_total), ("memkv model", 0));
        }
        assert!(status.reactors.iter().map(|reactor| reactor.completions_total).sum::<u64>() > 0);
        assert_eq!(
            status.counters["memkv_lent_bytes_total"], 0,
            "memory that drives see is not lent"
        );
        node.stop().expect("an orderly stop");
        assert!(site.0.iter().all(|model| model.lock().stats().shutdowns > 0), "drives too");
    }
    assert_eq!(site.offences(), 0);
}

#[test]
fn what_was_acknowledged_survives_that_the_drives_lose_their_power() {
    let site = Site::new(2);
    let node = site.start("");
    put_all(&node);
    // At one moment: a drive that is gone a little sooner is told to the other, and left out from then on. To
    // forget what was not durable takes longer than a look at the drives.
    let mut models: Vec<_> = site.0.iter().map(|model| model.lock()).collect();
    models.iter_mut().for_each(|model| model.remove());
    models.iter_mut().for_each(|model| model.cut_power());
    drop(models);
    // Nothing can be left in order; that both are gone is noticed without a request.
    wait_for(&node, "both drives are gone", |status| {
        status.drives.iter().all(|drive| drive.state == DriveState::Offline)
    });
    let _ = node.stop();
    let node = site.start("");
    let status = node.admin().status();
    assert!(status.drives.iter().all(|drive| !drive.recovery.clean), "{status:?}");
    check_all(&node);
    node.stop().expect("an orderly stop");
    assert_eq!(site.offences(), 0);
}

#[test]
fn a_drive_that_is_pulled_goes_offline_although_nobody_asks_for_it() {
    let site = Site::new(2);
    let node = site.start("");
    put_all(&node);
    site.0[0].lock().remove();
    let status = wait_for(&node, "the first drive is gone", |status| {
        status.drives[0].state == DriveState::Offline
    });
    let why = status.drives[0].offline_reason.as_deref().expect("a reason");
    assert!(why.contains("removed"), "{why}");
    assert_eq!(status.drives[1].state, DriveState::Online);
    wait_for(&node, "the other one is told", |status| {
        status.counters["memkv_epochs_raised_total"] > 0
    });
    let mut wire = Wire::connect(&node);
    for (key, bytes) in values() {
        match wire.get(&key) {
            (reply, back) if reply.status == Status::Ok => {
                assert!(back == bytes, "{key:?} differs")
            }
            (reply, _) => assert_eq!(reply.reason, MissReason::DriveLost, "{key:?}: {reply:?}"),
        }
    }
    let bytes = value(9, 100_000);
    assert_eq!(wire.put(b"after", &bytes, PutMode::Absent).status, Status::Ok);
    assert_eq!(wire.get(b"after").1, bytes);
    node.stop().expect("an orderly stop");
}

#[test]
fn commands_of_a_drive_that_fails_end_where_there_is_no_node() {
    let pool = PoolConfig { size: 16 * MIB, chunk: 2 * MIB, hugepages: Hugepages::Never };
    let pool = Pool::new(pool).expect("a pool");
    let model = model(0);
    let bypass = Bypass::new(Sysfs::default());
    let drive = open_model(&model, &pool, LIMIT);
    bypass.note(&drive);
    let config = ReactorConfig::default();
    let mut reactor = Reactor::new(config, Rc::new(SystemClock), Rng::seeded(1));
    let queue = drive.open_queue(&reactor.local()).expect("a queue");
    model.lock().fault(Fault::Swallow);
    let buf = pool.allocate(Class::Checkpoint, 4096).expect("a buffer");
    let read = async move { memkv_block::read(&*queue, 0, 4096, buf).await };
    let mut read = reactor.local().spawn_join(read);
    reactor.step();
    model.lock().remove();
    let begun = Instant::now();
    let (result, buf) = loop {
        reactor.step();
        if let Some(end) = read.try_take() {
            break end;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "the command never ends");
        std::thread::yield_now();
    };
    assert!(matches!(result, Err(IoError::Offline)) && buf.is_some(), "{result:?}");
}

#[test]
fn a_drive_that_stalled_is_let_go_before_it_is_readmitted() {
    // No machine has such devices. They are formatted by a first node: in direct mode that is not done.
    let names = ["ffff:0a:00.0", "ffff:0b:00.0"];
    let site = Site(names.map(|name| named_model(name, name)).into());
    site.start("").stop().expect("an orderly stop");
    let text = format!(
        "memory: {{max_size: 64 MiB, hugepages: never}}\nnode: {{reactors: 2}}\nstorage: {{mode: direct, \
         drives: [{{media: '{}'}}, {{media: '{}'}}]}}\n",
        names[0], names[1]
    );
    let mut opened = Vec::new();
    let node = start(&text, |pool, bypass| {
        opened = site.0.iter().map(|model| open_model(model, pool, LIMIT)).collect();
        opened.iter().for_each(|drive| bypass.note(drive));
        let limits = [Duration::from_secs(2), 2 * LIMIT];
        let watched = opened.iter().zip(limits);
        watched.map(|(drive, limit)| watch(drive.clone() as Arc<dyn BlockDevice>, limit)).collect()
    });
    let outstanding =
        |status: &NodeStatus| status.reactors.iter().map(|reactor| reactor.depth).sum::<u64>();
    site.0[0].lock().fault(Fault::Swallow);
    let (mut wire, bytes) = (Wire::connect(&node), value(1, 5000));
    let mut key = 0u32;
    let status = wait_for(&node, "it stalls", |status| {
        key += 1;
        wire.put(&key.to_le_bytes(), &bytes, PutMode::Absent);
        status.drives[0].state == DriveState::Offline
    });
    assert!(outstanding(&status) > 0, "what stalled is in the drive: {status:?}");
    assert!(opened[0].attend(), "it is not out of service");
    for name in [names[0], "FFFF:0A:00.0"] {
        let refused = node.admin().readmit(name).expect_err("there is no such device");
        assert!(refused.to_string().contains("no PCI device ffff:0a:00.0"), "{refused}");
    }
    assert!(!opened[0].attend() && opened[1].attend(), "it was let go");
    wait_for(&node, "commands come back", |status| outstanding(status) == 0);
    assert_eq!(wire.put(b"after", &bytes, PutMode::Absent).status, Status::Ok);
    node.stop().expect("an orderly stop");
}

#[test]
fn the_end_of_an_old_handle_is_not_that_of_the_drive_in_its_place() {
    let (site, gone) = (Site::new(1), model(0));
    let mut kept = None;
    let node = site.start_beside("", LIMIT, |pool, bypass| {
        let old = open_model(&gone, pool, LIMIT);
        gone.lock().remove();
        while old.attend() {
            std::thread::yield_now();
        }
        bypass.note(&old);
        kept = Some(old);
    });
    // They are looked at in the order in which they came, so by then the old one was.
    let status = wait_for(&node, "the drive was asked for its health", |status| {
        status.drives[0].nvme.as_ref().is_some_and(|nvme| nvme.smart.is_some())
    });
    assert_eq!(status.drives[0].offline_reason, None);
    assert_eq!(node.admin().status().drives[0].state, DriveState::Online);
    node.stop().expect("an orderly stop");
    drop(kept);
}

#[test]
fn a_drive_that_the_system_wants_back_is_let_go() {
    let site = Site::new(2);
    let node = site.start("");
    put_all(&node);
    site.0[1].lock().recall();
    let status =
        wait_for(&node, "it is let go", |status| status.drives[1].state == DriveState::Offline);
    let why = status.drives[1].offline_reason.as_deref().expect("a reason");
    assert!(why.contains("called the controller back"), "{why}");
    assert_eq!(status.drives[0].state, DriveState::Online);
    node.stop().expect("an orderly stop");
}

#[test]
fn a_controller_that_fails_under_load_is_reset_and_nothing_is_lost() {
    let site = Site::new(1);
    let node = site.start_with("", Duration::from_secs(4));
    put_all(&node);
    let faults =
        [Fault::Fatal, Fault::Nothing, Fault::BadPhase, Fault::Nothing, Fault::Spurious(77)];
    for fault in faults {
        site.0[0].lock().fault(fault);
        check_all(&node);
    }
    let status = wait_for(&node, "it was reset", |status| {
        status.drives[0].nvme.as_ref().is_some_and(|nvme| nvme.resets_total > 0)
    });
    assert_eq!(status.drives[0].state, DriveState::Online);
    check_all(&node);
    node.stop().expect("an orderly stop");
}

#[test]
fn the_health_of_drives_is_told() {
    let site = Site::new(1);
    let node = site.start("");
    let told = wait_for(&node, "it was asked", |status| {
        status.drives[0].nvme.as_ref().is_some_and(|nvme| nvme.smart.is_some())
    });
    let smart = told.drives[0].nvme.as_ref().and_then(|nvme| nvme.smart.clone()).expect("told");
    assert_eq!(smart.critical_warning, 0);
    let metrics = node.admin().metrics();
    let gauge = metrics.gauges.iter().find(|g| g.name == "memkv_nvme_used_ratio").expect("a gauge");
    assert_eq!(gauge.labels, [("drive", "0000:00:00.0".to_owned())]);
    let counters = metrics.counters.iter().filter(|c| c.name == "memkv_nvme_resets_total");
    assert_eq!(counters.map(|counter| counter.value).sum::<u64>(), 0);
    node.stop().expect("an orderly stop");
}
