//! A simulated client: a state machine that keeps some requests under way, loses its connection now and
//! then, and tries again.

use memkv_sim::{ClientEnd, Fate};
use memkv_wire::{Header, Opcode, Status};

use crate::counters::Count;
use crate::link::{Arrival, Link, LinkError};
use crate::model::{Broken, KeyId, What};
use crate::options::SPACES;
use crate::replies::Then;
use crate::requests::{Request, Work};
use crate::stage::{Stage, credential};

/// A request that has no answer after this long, on a connection that stands, is lost: a bug.
const ANSWER_NANOS: u64 = 180_000_000_000;
/// How often a client looks at what is overdue.
const LOOK_NANOS: u64 = 5_000_000_000;

/// What a client needs from the world around it.
pub trait Port {
    /// A new connection, while the server is up.
    fn connect(&mut self, client: u64) -> Option<ClientEnd>;
    /// Another turn for this client after so many nanoseconds.
    fn wake_in(&mut self, client: u64, nanos: u64);
}

/// One client.
pub struct Client {
    index: u64,
    space: usize,
    id: [u8; 16],
    link: Option<Link>,
    /// It has closed its side and only reads what still comes.
    closing: bool,
    requests: Vec<Request>,
    /// To be sent again once there is a connection.
    backlog: Vec<Request>,
    /// Bytes to be reported, from the last replies.
    reports: Vec<Work>,
    next_request: u64,
    leased: Vec<KeyId>,
    timer: bool,
    /// Until when it reads nothing.
    stopped: Option<u64>,
    /// The server waits for bytes on this connection that never come.
    owes: bool,
}

impl Client {
    pub fn new(index: u64, spaces: usize) -> Client {
        let mut id = [0x5a; 16];
        id[..8].copy_from_slice(&index.to_le_bytes());
        Client {
            index,
            space: index as usize % spaces,
            id,
            link: None,
            closing: false,
            requests: Vec::new(),
            backlog: Vec::new(),
            reports: Vec::new(),
            next_request: 1,
            leased: Vec::new(),
            timer: false,
            stopped: None,
            owes: false,
        }
    }

    /// Nothing is under way and nothing is to be repeated.
    pub fn is_idle(&self) -> bool {
        self.requests.is_empty() && self.backlog.is_empty() && self.reports.is_empty()
    }

    /// Requests under way.
    pub fn under_way(&self) -> usize {
        self.requests.len()
    }

    /// Whether it waits for the answer to something that changes what is stored.
    pub fn changes_under_way(&self) -> bool {
        self.requests.iter().any(|request| request.work.changes())
    }

    /// Takes its turn: something arrived, or its timer is up. New requests only while `busy`.
    pub fn turn(
        &mut self,
        stage: &mut Stage,
        port: &mut dyn Port,
        busy: bool,
    ) -> Result<(), Broken> {
        let stands = self.link.as_ref().is_some_and(|link| link.fate() == Fate::Open);
        let asleep = self.stopped.is_some_and(|until| stage.now().nanos < until);
        if !(asleep && stands) {
            self.read(stage)?;
        }
        if self.link.as_ref().is_some_and(|link| link.fate() != Fate::Open) {
            if asleep {
                stage.bump(Count::ReadersShutOut);
            }
            self.hang_up(stage);
        }
        self.check_overdue(stage)?;
        if self.link.is_none() && (busy || !self.is_idle()) {
            self.connect(stage, port);
        }
        if self.link.as_ref().is_some_and(Link::is_open) && !self.closing {
            self.write(stage, busy);
            self.maybe_hang_up(stage, port);
            self.maybe_stop_reading(stage, port);
        }
        if !self.is_idle() && !self.timer {
            self.timer = true;
            port.wake_in(self.index, LOOK_NANOS);
        }
        Ok(())
    }

    /// Its timer is up.
    pub fn timer_is_up(&mut self) {
        self.timer = false;
    }

    /// Takes what has arrived and nothing else: the last words of a server that is about to stop.
    pub fn read(&mut self, stage: &mut Stage) -> Result<(), Broken> {
        if self.stopped.take().is_some()
            && let Some(link) = &self.link
        {
            link.read_on();
        }
        while let Some(link) = &mut self.link {
            let (requests, closing) = (&mut self.requests, self.closing);
            let mut next = None;
            let arrival = link.receive(|header, meta, payload| {
                next = Some(take_frame(stage, requests, closing, (header, meta, payload))?);
                Ok::<(), Broken>(())
            });
            match arrival {
                Ok(result) => match result? {
                    Arrival::Nothing => return Ok(()),
                    Arrival::Greeted(limits) => {
                        stage.bump(Count::Handshakes);
                        assert_eq!(
                            limits.extent, stage.options.extent,
                            "the server says its extent"
                        );
                    }
                    Arrival::Frame => {
                        if let Some((at, credits, then)) = next {
                            self.act(stage, at, credits, then);
                        }
                    }
                },
                Err(LinkError::Refused(Status::ShuttingDown)) => self.hang_up(stage),
                Err(error) => {
                    let detail = format!("client {}: {error:?}", self.index);
                    return Err(Broken { what: What::Unexplained, key: u32::MAX, detail });
                }
            }
        }
        Ok(())
    }

    /// Does what a reply leaves to be done.
    fn act(&mut self, stage: &mut Stage, at: Option<usize>, credits: u32, then: Then) {
        let Some(link) = &mut self.link else { return };
        link.credits += credits;
        let Some(at) = at else { return };
        match then {
            Then::Wait => {}
            Then::Done => drop(self.requests.swap_remove(at)),
            Then::Report { sight, generation, last } => {
                self.reports.push(Work::Suspect { sight, generation });
                if last {
                    self.requests.swap_remove(at);
                }
            }
            Then::SendData(wanted) => {
                let done = self.send_wanted(stage, at, wanted);
                if done {
                    self.requests.swap_remove(at);
                }
            }
        }
    }

    /// Sends the bytes that the server wants, in any order; now and then it does not, and the offer
    /// runs out. True when nothing more will come for the request.
    fn send_wanted(&mut self, stage: &mut Stage, at: usize, wanted: u64) -> bool {
        let link = self.link.as_mut().expect("the reply came on it");
        let request = &mut self.requests[at];
        let id = request.id;
        let Work::Offer { items, waiting, .. } = &mut request.work else {
            unreachable!("only offers are wanted")
        };
        let mut order: Vec<usize> =
            (0..items.len()).filter(|item| wanted & 1 << item != 0).collect();
        if stage.chance(2) {
            order.reverse();
        }
        let forget = stage.chance(60);
        self.owes |= forget;
        for item in order {
            if forget {
                // Never sent, so never stored.
                stage.model.put_refused(&items[item].put);
                items[item].settled = true;
            } else {
                stage.send_data(link, id, item as u32, &items[item]);
                *waiting += 1;
            }
        }
        *waiting == 0
    }

    fn connect(&mut self, stage: &mut Stage, port: &mut dyn Port) {
        let Some(end) = port.connect(self.index) else {
            if !self.timer {
                self.timer = true;
                let pause = 1_000_000 + stage.below(20_000_000);
                port.wake_in(self.index, pause);
            }
            return;
        };
        stage.bump(Count::Connections);
        let mut nonce = [0; 32];
        for word in nonce.chunks_mut(8) {
            word.copy_from_slice(&stage.rng.next_u64().to_le_bytes());
        }
        let namespace = SPACES[self.space].1;
        self.link = Some(Link::greet(end, credential(self.space), self.id, namespace, nonce));
        (self.closing, self.owes) = (false, false);
    }

    /// Sends what is to be repeated, what is to be reported, and new requests up to the depth.
    fn write(&mut self, stage: &mut Stage, busy: bool) {
        for mut request in std::mem::take(&mut self.backlog) {
            if request.work.needs_credit() && self.has_no_credit(stage) {
                self.backlog.push(request);
                continue;
            }
            request.attempts += 1;
            stage.bump(Count::Retries);
            match &mut request.work {
                Work::Put { items, .. } => {
                    items.iter_mut().for_each(|item| stage.model.put_again(&mut item.put));
                }
                Work::Offer { items, waiting, answered, .. } => {
                    items.iter_mut().for_each(|item| stage.model.put_again(&mut item.put));
                    (*waiting, *answered) = (0, false);
                }
                Work::Delete(deletes) => {
                    deletes.iter_mut().for_each(|delete| stage.model.delete_again(delete));
                }
                _ => unreachable!("only what changes something is repeated"),
            }
            self.send(stage, request);
        }
        for work in std::mem::take(&mut self.reports) {
            self.send_new(stage, work);
        }
        while busy
            && self.requests.len() < stage.options.depth
            && stage.requests < stage.options.requests
            && !self.has_no_credit(stage)
        {
            let work = stage.draw_work(self.space);
            self.send_new(stage, work);
        }
    }

    /// Whether every credit is out: what may need one waits.
    fn has_no_credit(&self, stage: &mut Stage) -> bool {
        let none = self.link.as_ref().is_some_and(|link| link.credits == 0);
        if none {
            stage.bump(Count::CreditExhausted);
        }
        none
    }

    /// Stops reading for a while, now and then for longer than a server waits.
    fn maybe_stop_reading(&mut self, stage: &mut Stage, port: &mut dyn Port) {
        let stops = stage.options.stops;
        if stops == 0 || self.stopped.is_some() || stage.below(1_000) >= u64::from(stops) {
            return;
        }
        let Some(link) = &self.link else { return };
        let most = match stage.below(100) {
            0 => 100_000_000_000,
            1..=9 => 1_000_000_000,
            _ => 20_000_000,
        };
        let nanos = 1 + stage.below(most);
        link.stop_reading();
        self.stopped = Some(stage.now().nanos + nanos);
        stage.bump(Count::ReadersStopped);
        // Its next turn may have been meant for something else.
        self.timer = true;
        port.wake_in(self.index, nanos);
    }

    /// Sends a request of the harness's own.
    pub fn order(&mut self, stage: &mut Stage, work: Work) {
        self.send_new(stage, work);
    }

    /// Whether it can send requests right now.
    pub fn is_open(&self) -> bool {
        self.link.as_ref().is_some_and(Link::is_open) && !self.closing
    }

    /// Which keys it may use.
    pub fn space(&self) -> usize {
        self.space
    }

    fn send_new(&mut self, stage: &mut Stage, work: Work) {
        stage.requests += 1;
        stage.bump(Count::Requests);
        stage.counters.add(Count::Operations, work.operations() as u64);
        let hurried = stage.rng.below(1_000) < u64::from(stage.options.hurried);
        let deadline_ms = if hurried { 1 + stage.below(3) as u32 } else { 0 };
        let id = self.next_request;
        self.next_request += 1;
        if let Work::Lease { sights, .. } = &work {
            self.leased.extend(sights.iter().map(|sight| sight.key));
        }
        self.send(stage, Request { id, work, attempts: 1, deadline_ms, sent: 0 });
    }

    fn send(&mut self, stage: &mut Stage, mut request: Request) {
        let link = self.link.as_mut().expect("requests need a connection");
        if request.work.needs_credit() {
            assert!(link.credits > 0, "the server grants a credit for each request of the depth");
            link.credits -= 1;
        }
        if stage.verbose {
            eprintln!("client {} sends request {}: {}", self.index, request.id, request.work);
        }
        if let Work::Release(keys) = &request.work {
            keys.iter().for_each(|&key| stage.model.release_begins(key));
        }
        let alone = !self.owes && !self.requests.iter().any(|other| other.work.is_offer());
        if let Work::Offer { items, along, .. } = &mut request.work {
            *along = alone && items.len() == 1 && stage.chance(2);
        }
        request.sent = stage.now().nanos;
        stage.send(link, &mut request);
        self.requests.push(request);
    }

    fn maybe_hang_up(&mut self, stage: &mut Stage, port: &mut dyn Port) {
        if stage.rng.below(1_000_000) >= u64::from(stage.options.hangups) {
            return;
        }
        if stage.chance(2) {
            self.hang_up(stage);
            if !self.timer {
                self.timer = true;
                port.wake_in(self.index, 1_000 + stage.below(2_000_000));
            }
        } else {
            self.closing = true;
            self.link.as_ref().expect("it is open").close();
        }
    }

    /// The connection is gone. What changes something is repeated or given up as unknown; the rest is
    /// forgotten.
    pub fn hang_up(&mut self, stage: &mut Stage) {
        self.link = None;
        self.stopped = None;
        stage.bump(Count::Disconnects);
        if self.changes_under_way() {
            stage.bump(Count::DisconnectsWithPutOpen);
        }
        for key in self.leased.drain(..) {
            stage.model.released(key);
        }
        for request in std::mem::take(&mut self.requests) {
            if let Work::Release(keys) = &request.work {
                let now = stage.now().nanos;
                keys.iter().for_each(|&key| stage.model.release_ends(key, now));
            }
            if !request.work.changes() {
                continue;
            }
            // Of an offer that was answered in part only the whole could be repeated.
            let partly = match &request.work {
                Work::Offer { items, .. } => items.iter().any(|item| item.settled),
                _ => false,
            };
            if !partly && stage.chance(2) {
                self.backlog.push(request);
            } else {
                stage.bump(Count::UnknownOutcomes);
            }
        }
    }

    fn check_overdue(&self, stage: &Stage) -> Result<(), Broken> {
        if self.link.is_none() {
            return Ok(());
        }
        let now = stage.now().nanos;
        let late = |request: &&Request| now.saturating_sub(request.sent) > ANSWER_NANOS;
        let Some(request) = self.requests.iter().find(late) else { return Ok(()) };
        let detail = format!(
            "client {}: no answer after {} s to request {}: {}",
            self.index,
            (now - request.sent) / 1_000_000_000,
            request.id,
            request.work
        );
        Err(Broken { what: What::Unexplained, key: u32::MAX, detail })
    }
}

/// Finds the request of a frame and lets the stage judge it: its place, credits, what to do.
fn take_frame(
    stage: &mut Stage,
    requests: &mut [Request],
    closing: bool,
    (header, meta, payload): (&Header, &[u8], &[u8]),
) -> Result<(Option<usize>, u32, Then), Broken> {
    let unexplained = |detail: String| Broken { what: What::Unexplained, key: u32::MAX, detail };
    if header.opcode() == Opcode::Goodbye {
        // The second is the answer to our own end.
        let ends = header.status() == Status::Ok && closing;
        if header.status() == Status::ShuttingDown || ends {
            return Ok((None, 0, Then::Wait));
        }
        // Bytes for an offer that ran out meanwhile end the connection; the client could not know.
        let late = requests
            .iter()
            .any(|request| matches!(request.work, Work::Offer { waiting, .. } if waiting > 0));
        if late && header.status() == Status::BadRequest {
            return Ok((None, 0, Then::Wait));
        }
        let text = memkv_wire::meta::GoodbyeMeta::parse(meta).map_or("", |goodbye| goodbye.text);
        return Err(unexplained(format!("the server hung up: {}: {text}", header.status())));
    }
    let at = requests.iter().position(|request| request.id == header.request_id());
    let Some(at) = at.filter(|_| header.is_reply()) else {
        return Err(unexplained(format!("a reply to nothing: {header:?}")));
    };
    let then = stage.take_reply(&mut requests[at], header, meta, payload)?;
    Ok((Some(at), header.credits(), then))
}
