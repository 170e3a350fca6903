//! The way to a model: what a driver is given, and the thread that a drive is.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use memkv_dma::Memory;
use memkv_poller::{Clock, Instant};

use super::host::Host;
use super::{Model, ModelConfig, SharedModel};
use crate::transport::{Bar, Transport, Window};

/// A clock that stands still until somebody moves it.
#[derive(Clone, Default, Debug)]
pub struct ModelClock(Arc<AtomicU64>);

impl ModelClock {
    /// Moves the time forward.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_nanos() as u64, Ordering::Relaxed);
    }
}

impl Clock for ModelClock {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.0.load(Ordering::Relaxed))
    }

    fn unix_seconds(&self) -> u64 {
        self.0.load(Ordering::Relaxed) / 1_000_000_000
    }
}

/// The way to a model. It stops with its last handle.
pub struct ModelLink {
    name: String,
    model: SharedModel,
    bar: Bar,
    /// One pair per vector: the model's end, the driver's end.
    interrupts: Vec<(UnixStream, UnixStream)>,
    thread: Option<Thread>,
    /// Moved when the driver waits and the model has no thread.
    clock: ModelClock,
    /// Whether a model can be cut off.
    cuts: bool,
}

struct Thread {
    stop: Arc<AtomicBool>,
    handle: Mutex<Option<JoinHandle<()>>>,
}

// SAFETY: the registers belong to no thread; everything else is shared by threads already.
unsafe impl Send for ModelLink {}
// SAFETY: as above.
unsafe impl Sync for ModelLink {}

/// How much later it is each time that a driver waits for a model without a thread.
const PAUSE: Duration = Duration::from_millis(1);

/// How long it takes to cut a model off.
const CUT: Duration = Duration::from_millis(300);

/// Interrupt vectors.
const VECTORS: u16 = 17;

impl ModelLink {
    /// A model that takes a step when the test says so, and whenever the driver waits for it; then a
    /// millisecond passes on `clock`.
    pub fn by_hand(config: ModelConfig, clock: ModelClock) -> (Arc<ModelLink>, SharedModel) {
        let link = ModelLink::new(config, clock, 0, true);
        let model = link.model.clone();
        (Arc::new(link), model)
    }

    /// The same, and the model cannot be cut off from memory.
    pub fn uncuttable(config: ModelConfig, clock: ModelClock) -> (Arc<ModelLink>, SharedModel) {
        let link = ModelLink::new(config, clock, 0, false);
        let model = link.model.clone();
        (Arc::new(link), model)
    }

    /// A model with a thread of its own, and interrupts.
    pub fn with_thread(config: ModelConfig) -> (Arc<ModelLink>, SharedModel) {
        let link = ModelLink::new(config, ModelClock::default(), VECTORS, true);
        let model = link.model.clone();
        (link.run(), model)
    }

    /// The way to a model that had a thread, once the way that there was before is gone: the drive is
    /// what it was, and is used anew, as by another process.
    pub fn again(model: &SharedModel) -> Arc<ModelLink> {
        model.lock().begin_anew();
        ModelLink::to(model.clone(), ModelClock::default(), VECTORS, true).run()
    }

    /// Gives the model a thread of its own.
    fn run(mut self) -> Arc<ModelLink> {
        let model = self.model.clone();
        let stop = Arc::new(AtomicBool::new(false));
        let bells: Vec<UnixStream> = self
            .interrupts
            .iter()
            .map(|(bell, _)| bell.try_clone().expect("a descriptor"))
            .collect();
        let stopped = Arc::clone(&stop);
        let handle = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if !run(&model, &bells) {
                    std::thread::yield_now();
                }
            }
        });
        self.thread = Some(Thread { stop, handle: Mutex::new(Some(handle)) });
        Arc::new(self)
    }

    fn new(config: ModelConfig, clock: ModelClock, vectors: u16, cuts: bool) -> ModelLink {
        let model = SharedModel(Arc::new(Mutex::new(Model::new(config, Host::new()))));
        ModelLink::to(model, clock, vectors, cuts)
    }

    fn to(model: SharedModel, clock: ModelClock, vectors: u16, cuts: bool) -> ModelLink {
        let (bar, name) = {
            let mut model = model.lock();
            (model.host.bar(), model.config.name.clone())
        };
        let pair = |_| {
            let (bell, ear) = UnixStream::pair().expect("two descriptors");
            bell.set_nonblocking(true).expect("a socket");
            ear.set_nonblocking(true).expect("a socket");
            (bell, ear)
        };
        let interrupts = (0..vectors).map(pair).collect();
        ModelLink { name, model, bar, interrupts, thread: None, clock, cuts }
    }
}

/// One step of a model with a thread; then its interrupts.
fn run(model: &SharedModel, bells: &[UnixStream]) -> bool {
    let mut model = model.lock();
    let done = model.step();
    let raised = std::mem::take(&mut model.queues.raised);
    drop(model);
    for vector in raised {
        if let Some(mut bell) = bells.get(usize::from(vector)) {
            // Full: it is readable as it is.
            let _ = bell.write(&[1]);
        }
    }
    done
}

impl Drop for ModelLink {
    fn drop(&mut self) {
        let Some(thread) = &mut self.thread else { return };
        thread.stop.store(true, Ordering::Relaxed);
        let handle = thread.handle.get_mut().map(Option::take).ok().flatten();
        if let Some(handle) = handle {
            handle.join().expect("the model does not panic");
        }
    }
}

// SAFETY: the registers lie in the model, which this value holds, and the model finds what is written
// there; it reaches memory by the windows that `map` has told, keeps that memory, and reaches nothing
// else: every address is looked up.
unsafe impl Transport for ModelLink {
    fn name(&self) -> &str {
        &self.name
    }

    fn reason(&self) -> String {
        String::from("a model of a controller")
    }

    fn bar(&self) -> Bar {
        self.bar
    }

    fn map(&self, memory: Memory) -> io::Result<Window> {
        Ok(self.model.lock().host.map(memory))
    }

    fn cut_off(&self) -> bool {
        self.clock.advance(CUT);
        if self.cuts {
            self.model.lock().host.cut = true;
        }
        self.cuts
    }

    fn is_recalled(&self) -> bool {
        std::mem::take(&mut self.model.lock().recalled)
    }

    fn interrupt(&self, vector: u16) -> Option<RawFd> {
        self.interrupts.get(usize::from(vector)).map(|(_, ear)| ear.as_raw_fd())
    }

    fn quiet(&self, vector: u16) {
        let Some(pair) = self.interrupts.get(usize::from(vector)) else { return };
        let mut ear = &pair.1;
        while ear.read(&mut [0; 64]).is_ok_and(|read| read > 0) {}
    }

    fn pause(&self) {
        if self.thread.is_some() {
            return std::thread::yield_now();
        }
        self.model.lock().step();
        self.clock.advance(PAUSE);
    }
}
