//! A drive: opened once, shared by all reactors, shut down with its last handle.

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use memkv_block::{
    BlockDevice, BlockQueue, Counters, DeviceStats, Geometry, IoError, Kind, MAX_TRANSFER,
};
use memkv_dma::{Arena, Hugepages, Memory, Pool};
use memkv_poller::{Clock, Local};

use crate::admin::{self, Admin, AdminError, LOG_AT};
use crate::area::{ALIGNMENT, Area};
use crate::command::{Command, LOG_HEALTH_BYTES};
use crate::controller::{Controller, OVER, Signals, State, Wishes};
use crate::error::NvmeError;
use crate::health::Health;
use crate::queue::{self, QUEUE_AREA};
use crate::registers::Registers;
use crate::shape::{Identity, Shape};
use crate::transport::{Transport, Window};

/// How a controller is driven.
#[derive(Clone, Debug)]
pub struct Options {
    /// The namespace to use; none: the first that there is.
    pub namespace: Option<u32>,
    /// Reactors that will have a queue of their own.
    pub queues: u16,
    /// How long a command may go unanswered before it is aborted. A quarter of that later the controller is
    /// reset. To be less than what [`memkv_block::watch`] is told, or the drive is given up before.
    pub command_limit: Duration,
    /// How long a command that manages the controller may take.
    pub admin_limit: Duration,
    /// Whether queues raise interrupts, so that their reactors can sleep.
    pub interrupts: bool,
    /// What the queues' own memory is made of.
    pub hugepages: Hugepages,
}

impl Options {
    /// The first namespace with a queue for each of so many reactors, which may sleep.
    pub fn new(queues: u16) -> Options {
        Options {
            namespace: None,
            queues,
            command_limit: Duration::from_secs(4),
            admin_limit: Duration::from_secs(4),
            interrupts: true,
            hugepages: Hugepages::Prefer,
        }
    }
}

/// What a drive told about itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Info {
    /// Model, serial number and firmware, as the drive spells them.
    pub model: String,
    /// See `model`.
    pub serial: String,
    /// See `model`.
    pub firmware: String,
    /// Major and minor version of the specification that it follows.
    pub version: (u16, u8),
    /// The namespaces that it has, and the one that is used.
    pub namespaces: Vec<u32>,
    /// See `namespaces`.
    pub namespace: u32,
    /// I/O queues that it grants.
    pub queues: u16,
    /// Bytes that one command moves at most; longer transfers are several commands.
    pub transfer: u64,
    /// Whether what is written may lie in a cache until it is flushed.
    pub caches: bool,
}

/// What went wrong with a drive and was mended.
#[derive(Copy, Clone, PartialEq, Eq, Default, Debug)]
pub struct Troubles {
    /// Resets of the controller.
    pub resets: u64,
    /// Commands that it was asked to abort.
    pub aborts: u64,
    /// Commands that were submitted again after an error or a reset.
    pub retries: u64,
    /// Answers to commands that nobody had given.
    pub spurious: u64,
}

#[derive(Default)]
pub(crate) struct TroubleCounters {
    pub aborts: AtomicU64,
    pub retries: AtomicU64,
    pub spurious: AtomicU64,
}

/// What the queues of a drive share.
pub(crate) struct Shared {
    pub transport: Arc<dyn Transport>,
    pub registers: Registers,
    pub stride: usize,
    pub signals: Arc<Signals>,
    pub clock: Arc<dyn Clock + Send + Sync>,
    pub shape: Shape,
    pub options: Options,
    pub counters: Counters,
    pub troubles: TroubleCounters,
    /// The pool, as the controller sees it.
    pub window: Window,
    controller: Mutex<Controller>,
    /// Memory for queues, and which of them are taken.
    arena: Arena,
    arena_window: Window,
    taken: Mutex<Vec<bool>>,
}

impl Shared {
    /// The controller's machine. Never asked for on the path of data.
    pub fn controller(&self) -> MutexGuard<'_, Controller> {
        self.controller.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, unless somebody else has it.
    pub fn try_controller(&self) -> Option<MutexGuard<'_, Controller>> {
        match self.controller.try_lock() {
            Ok(controller) => Some(controller),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// A queue that nobody has, by its number, with its memory.
    pub fn claim_queue(&self) -> Option<(u16, Area)> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let index = taken.iter().position(|taken| !taken)?;
        taken[index] = true;
        let offset = admin::AREA + index * QUEUE_AREA;
        Some((index as u16 + 1, Area::new(&self.arena, &self.arena_window, offset, QUEUE_AREA)))
    }

    /// Its owner has given back the memory, which the controller does not know any more.
    pub fn release_queue(&self, queue: u16) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken[usize::from(queue) - 1] = false;
    }
}

impl Drop for Shared {
    /// Stops the controller in good order; then its memory may go.
    fn drop(&mut self) {
        let now = || self.clock.now();
        let controller = self.controller.get_mut().unwrap_or_else(PoisonError::into_inner);
        controller.shut_down(now());
        while !matches!(controller.state(), State::Off | State::Failed) {
            controller.step(now());
            controller.cut_off();
            self.transport.pause();
        }
        if !self.signals.is_cut_off() {
            controller.leak();
        }
    }
}

/// A namespace of an NVMe controller, driven from this process.
pub struct Nvme {
    shared: Arc<Shared>,
    info: Info,
    reason: String,
    /// One asks for the health at a time: there is one page for the answer.
    asking: Mutex<()>,
}

/// Brings a controller up. Blocks until it is ready or has failed, which takes as long as the controller
/// needs, often some milliseconds; by the deadlines of its states at most some ten seconds.
pub fn open(
    transport: Arc<dyn Transport>,
    pool: &Pool,
    clock: Arc<dyn Clock + Send + Sync>,
    options: Options,
) -> Result<Arc<Nvme>, NvmeError> {
    assert!(options.queues > 0, "a drive without queues does nothing");
    let registers = Registers::new(transport.bar()).ok_or(NvmeError::Registers)?;
    let stride = registers.capabilities().map_err(|_| NvmeError::Removed)?.doorbell_stride();
    let window = transport.map(Memory::Pool(pool.clone())).map_err(NvmeError::Map)?;
    let size = admin::AREA + usize::from(options.queues) * QUEUE_AREA;
    let arena = Arena::new(size as u64, options.hugepages)?;
    let arena_window = transport.map(Memory::Arena(arena.clone())).map_err(NvmeError::Map)?;
    let area = Area::new(&arena, &arena_window, 0, admin::AREA);
    let admin = Admin::new(area, &registers, stride, options.admin_limit);
    let admin = admin.ok_or(NvmeError::Registers)?;
    let Options { namespace, queues, admin_limit, .. } = options;
    let wishes = Wishes { namespace, queues, admin_limit };
    let mut controller =
        Controller::new(Arc::clone(&transport), registers, admin, wishes, clock.now())?;
    loop {
        controller.step(clock.now());
        controller.cut_off();
        match controller.state() {
            State::Ready => break,
            State::Failed => {
                let failure = controller.take_failure();
                if !controller.signals().is_cut_off() {
                    controller.leak();
                }
                return Err(failure);
            }
            _ => transport.pause(),
        }
    }
    let identity = controller.identity().expect("a ready controller said what it is").clone();
    let reason = format!("{}; {}", identity.controller.model, transport.reason());
    let shared = Shared {
        registers,
        stride,
        signals: Arc::clone(controller.signals()),
        clock,
        shape: identity.shape,
        options,
        counters: Counters::with_queues(usize::from(identity.queues)),
        troubles: TroubleCounters::default(),
        window,
        controller: Mutex::new(controller),
        arena,
        arena_window,
        taken: Mutex::new(vec![false; usize::from(identity.queues)]),
        transport,
    };
    let info = info_of(identity);
    tracing::info!(drive = shared.transport.name(), ?info, "controller ready");
    Ok(Arc::new(Nvme { shared: Arc::new(shared), info, reason, asking: Mutex::new(()) }))
}

fn info_of(identity: Identity) -> Info {
    let Identity { version, controller, namespaces, shape, queues } = identity;
    Info {
        model: controller.model.to_string(),
        serial: controller.serial.to_string(),
        firmware: controller.firmware.to_string(),
        version,
        namespaces,
        namespace: shape.namespace,
        queues,
        transfer: shape.transfer,
        caches: shape.caches,
    }
}

impl Nvme {
    /// What the drive told about itself.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// What went wrong so far and was mended.
    pub fn troubles(&self) -> Troubles {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.shared.troubles;
        Troubles {
            resets: self.shared.signals.resets(),
            aborts: get(&counters.aborts),
            retries: get(&counters.retries),
            spurious: get(&counters.spurious),
        }
    }

    /// Why the drive is out of service, if it is; told once.
    pub fn failure(&self) -> Option<NvmeError> {
        (self.shared.signals.era() == OVER).then(|| self.shared.controller().take_failure())
    }

    /// Looks after a drive that may have nothing to do: whether it is still there and well, and whether
    /// the system wants it back. False when it is out of service. To be called now and then, by any
    /// thread that may block: one that has failed is cut off from memory here, and its commands end then.
    pub fn attend(&self) -> bool {
        let shared = &self.shared;
        let recalled = shared.transport.is_recalled();
        let mut controller = shared.controller();
        let now = shared.clock.now();
        if recalled {
            controller.recall(NvmeError::Recalled);
        }
        controller.examine(now);
        controller.step(now);
        controller.cut_off();
        controller.state() != State::Failed
    }

    /// What of [attending](Nvme::attend) takes long.
    #[cfg(test)]
    pub(crate) fn cut_off(&self) {
        self.shared.controller().cut_off();
    }

    /// Takes the drive out of service, so that it can be opened anew: true when it is certain that it reaches
    /// no memory any more. Blocks until the kernel has let go of the device.
    pub fn let_go(&self) -> bool {
        let mut controller = self.shared.controller();
        controller.recall(NvmeError::LetGo);
        controller.cut_off();
        drop(controller);
        self.shared.signals.is_cut_off()
    }

    /// Asks the drive for its health. Blocks until it has answered, which takes it some milliseconds: not
    /// for a reactor.
    pub fn health(&self) -> Result<Health, NvmeError> {
        let shared = &self.shared;
        let _asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ticket = None;
        loop {
            let mut controller = shared.controller();
            controller.step(shared.clock.now());
            controller.cut_off();
            if controller.state() == State::Failed {
                return Err(NvmeError::Offline);
            }
            if let Some(admin) = controller.admin() {
                match ticket.as_ref().and_then(|ticket| admin.take(ticket)) {
                    Some(Ok(_)) => {
                        let page = admin.area().copy::<LOG_HEALTH_BYTES>(LOG_AT);
                        return Ok(Health::parse(&page));
                    }
                    Some(Err(AdminError::Status(status))) => {
                        return Err(NvmeError::Command { state: "asked for its health", status });
                    }
                    // Asked again when the controller is up.
                    Some(Err(AdminError::Reset)) => ticket = None,
                    None => {}
                }
                if ticket.is_none() {
                    let command = Command::health(admin.area().iova(LOG_AT));
                    ticket = admin.submit(command, shared.clock.now());
                }
            }
            drop(controller);
            shared.transport.pause();
        }
    }
}

impl BlockDevice for Nvme {
    fn geometry(&self) -> Geometry {
        geometry(&self.shared.shape)
    }

    fn kind(&self) -> Kind {
        Kind::Nvme
    }

    fn name(&self) -> &str {
        self.shared.transport.name()
    }

    fn reason(&self) -> &str {
        &self.reason
    }

    fn stats(&self) -> DeviceStats {
        self.shared.counters.stats()
    }

    fn open_queue(&self, local: &Local) -> Result<Rc<dyn BlockQueue>, IoError> {
        queue::open(Arc::clone(&self.shared), local)
    }
}

/// A transfer may be as long as any: it is cut into commands here.
#[inline]
pub(crate) fn geometry(shape: &Shape) -> Geometry {
    Geometry { capacity: shape.capacity, sector: 1 << shape.block_bits, max_transfer: MAX_TRANSFER }
}

const _: () =
    assert!(QUEUE_AREA.is_multiple_of(ALIGNMENT) && admin::AREA.is_multiple_of(ALIGNMENT));
