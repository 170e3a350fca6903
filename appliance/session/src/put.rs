//! Storing blocks: small ones inline, large ones offered first.
//!
//! ```text
//! inline   Put(keys, CRCs, payload) ─► placed, written, checked, committed ─► reply per item
//!          of one item that has to wait for nothing: placed first, received straight into its place
//!          with its payload named: copied there out of its client's memory
//! offered  Offer(keys, lengths) ─► each placed, or refused: present, busy, full ─► Want per item
//!          Data(item, payload, CRCs) ─► received straight into its place ─► committed ─► reply
//! ```
//!
//! An Offer may bring its payload as well: see `unasked.rs`.

use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

use memkv_dma::Class;
use memkv_poller::local::LocalPermit;
use memkv_poller::spare::{self, Row};
use memkv_poller::{Instant, timeout};
use memkv_store::{CommitError, Durability, KeyHash, Mode, Refusal, Reservation, ReserveRequest};
use memkv_wire as wire;
use memkv_wire::{
    CrcList, DataMeta, DataReply, Header, ItemReplies, ItemReply, MAX_EXTENTS, MAX_INLINE,
    MetaError, Opener, PutItem, PutItems, PutMode, Status, trailer_len,
};

use crate::context::Working;
use crate::input::Input;
use crate::join::join_all;
use crate::offers::Place;
use crate::payload::{Payload, Refused};
use crate::replies;
use crate::session::{End, Session};
use crate::writes::{WriteError, Writes};

/// How long a put may wait for something with a chunk of the pool in its hands. What it waits for
/// may need a checkpoint, and the checkpoint may need just that chunk.
const PATIENCE: Duration = Duration::from_millis(20);

/// One inline item: its request and its place in the payload.
struct Inline {
    index: usize,
    hash: KeyHash,
    request: ReserveRequest,
    crcs: CrcList,
    at: usize,
}

/// An inline item on its way to its drives: its index, its length, the CRCs that its putter claims, and its
/// writes.
type InHand = (usize, u64, CrcList, Writes);

impl Session {
    /// Whether there is credit for the payload of an inline put; takes it.
    pub fn admit_inline(&self, header: &Header) -> Result<(), End> {
        let admitted = header.payload_length() <= u64::from(MAX_INLINE)
            && self.credits.borrow_mut().take(1).is_ok();
        if admitted { Ok(()) } else { Err(End::NoCredit) }
    }

    /// An inline put that may have to wait: its payload is received whole, into memory of the pool, then
    /// the reader goes on to the next frame.
    pub async fn put_inline(
        self: &Rc<Self>,
        input: &mut Input,
        header: Header,
        meta: Row<u8>,
        began: Instant,
    ) -> Result<(), End> {
        let length = header.payload_length();
        let mut payload = match length {
            // Also where it is named, which is seen to when the meta is read.
            0 => Payload::Heap(Row::new()),
            length => {
                let since = self.context.local.now();
                let class = Class::Receive;
                let mut chunk = self.context.pool.allocate_wait(class, length as usize).await;
                let now = self.context.local.now();
                self.context.counters.wait_chunk.record(now.saturating_duration_since(since));
                chunk.set_len(length as usize);
                // The CRCs of its items are computed when the items are known.
                let (received, chunk) = input.payload(chunk, None).await;
                received?;
                Payload::Pool(chunk)
            }
        };
        let received = self.context.local.now();
        self.context.counters.wait_receive.record(received.saturating_duration_since(began));
        let mut permit = pin!(self.requests.acquire(1));
        let permit = match self.soon(permit.as_mut()).await {
            Some(permit) => permit,
            None => {
                payload.leave_pool();
                permit.await
            }
        };
        let work = self.context.work();
        let session = self.clone();
        self.context.local.spawn(async move {
            match session.put_items(&header, &meta, payload).await {
                Ok(items) => session.answer_inline(&header, &items, began),
                Err(error) => {
                    let mut meta = Row::new();
                    wire::Refusal { retry_ms: 0, text: &error.to_string() }.encode(&mut meta);
                    session.answer_put(&header, error.status(), meta, began);
                }
            }
            drop((permit, work));
        });
        Ok(())
    }

    /// The place of the only item of an inline put, and the CRCs that its putter claims, where there is
    /// nothing that it has to wait for or be refused by.
    pub fn place_at_once(&self, header: &Header, meta: &[u8]) -> Option<(Reservation, CrcList)> {
        let item = PutItems::lone(meta)?;
        if item.length != header.payload_length() {
            return None;
        }
        let request = self.reserve_request(header, 0, &item).ok()?;
        let reservation = self.context.store.reserve_at_once(&request)?;
        self.context.counters.wait_reserve.record(Duration::ZERO);
        Some((reservation, item.crcs))
    }

    /// An inline put of one item that has its place: its payload is received straight into that.
    pub async fn put_in_place(
        self: &Rc<Self>,
        input: &mut Input,
        header: Header,
        reservation: Reservation,
        claimed: CrcList,
        began: Instant,
    ) -> Result<(), End> {
        let mut writes = Writes::new(reservation);
        self.receiving.set(true);
        if let Err(end) = self.receive(input, &header, &mut writes).await {
            self.context.counters.lost_after_reserve.bump();
            writes.abandon(&self.context).await;
            return Err(end);
        }
        let (permit, work) = self.received(began).await;
        let session = self.clone();
        self.context.local.spawn(async move {
            let length = header.payload_length();
            let reply = session.commit_if(writes, &claimed, length).await;
            session.answer_inline(&header, &[reply], began);
            drop((permit, work));
        });
        Ok(())
    }

    /// Answers an inline put, item by item, and gives its credit back.
    fn answer_inline(&self, header: &Header, items: &[ItemReply], began: Instant) {
        let mut meta = Row::new();
        ItemReplies::encode_all(items, &mut meta);
        self.answer_put(header, Status::Ok, meta, began);
    }

    fn answer_put(&self, header: &Header, status: Status, meta: Row<u8>, began: Instant) {
        let returned = self.credits.borrow_mut().put_back(1);
        returned.expect("the credit was taken when the frame came");
        let now = self.context.local.now();
        self.context.counters.put_total.record(now.saturating_duration_since(began));
        self.send(Header::reply(header, status).with_credits(1), meta);
    }

    async fn put_items(
        self: &Rc<Self>,
        header: &Header,
        meta: &[u8],
        mut payload: Payload,
    ) -> Result<Row<ItemReply>, Refused> {
        let items = spare::vec::<PutItem<'static>>();
        let put = if header.is_named() {
            let (put, place) = PutItems::parse_staged(meta, items)?;
            payload = self.staged(place, put.inline_length()?)?;
            put
        } else {
            let (put, got) = (PutItems::parse_into(meta, items)?, header.payload_length());
            if put.inline_length()? != got {
                return Err(MetaError::InlineLength { got }.into());
            }
            put
        };
        let items = put.items;
        self.named_by_put(&items);
        let mut replies: Row<ItemReply> =
            items.iter().map(|_| replies::item(Status::BadRequest)).collect();
        let mut waiting = self.acceptable(header, &items, &mut replies);
        spare::keep_vec(spare::renamed::<_, PutItem<'static>>(items));
        // Keys are locked in the order of their hashes, so two batches never wait for each other
        // in a circle; a key that comes twice in one batch waits for the next round.
        waiting.sort_unstable_by_key(|item| (item.hash, item.index));
        while !waiting.is_empty() {
            let mut last = None;
            let (round, later): (Row<_>, Row<_>) = waiting
                .into_iter()
                .partition(|item: &Inline| last.replace(item.hash) != Some(item.hash));
            waiting = later;
            let mut in_hand = Row::new();
            for item in round {
                let length = item.request.length;
                match self.place_inline(&item, &mut payload, &mut in_hand, &mut replies).await {
                    Ok(writes) => in_hand.push((item.index, length, item.crcs, writes)),
                    Err(refusal) => replies[item.index] = replies::refusal(&refusal, length),
                }
            }
            // A commit may wait for a checkpoint.
            if waiting.is_empty() {
                payload = Payload::Heap(Row::new());
            } else {
                payload.leave_pool();
            }
            self.commit_all(&mut in_hand, &mut replies).await;
        }
        Ok(replies)
    }

    /// What comes of it, if that is known soon.
    async fn soon<F: Future>(&self, wait: Pin<&mut F>) -> Option<F::Output> {
        let local = &self.context.local;
        timeout(local, local.now() + PATIENCE, wait).await.ok()
    }

    /// Commits what is in hand and is what its putter says, all at once.
    async fn commit_all(self: &Rc<Self>, in_hand: &mut Row<InHand>, replies: &mut [ItemReply]) {
        let commits = in_hand.drain(..).map(|(index, length, crcs, writes)| {
            let session = self.clone();
            async move { (index, session.commit_if(writes, &crcs, length).await) }
        });
        for (index, reply) in join_all(commits).await {
            replies[index] = reply;
        }
    }

    /// The items whose key and length are acceptable; the others' replies are filled in.
    fn acceptable(
        &self,
        header: &Header,
        items: &[PutItem<'_>],
        replies: &mut [ItemReply],
    ) -> Row<Inline> {
        let mut accepted = Row::new();
        let mut at = 0;
        for (index, item) in items.iter().enumerate() {
            let place = at;
            at += item.length as usize;
            match self.reserve_request(header, index, item) {
                Err(status) => replies[index] = replies::item(status),
                Ok(request) => {
                    let (hash, crcs) = (request.hash, item.crcs);
                    accepted.push(Inline { index, hash, request, crcs, at: place });
                }
            }
        }
        accepted
    }

    fn extent_bytes(&self) -> usize {
        self.context.store.config().extent_bytes as usize
    }

    pub fn reserve_request(
        &self,
        header: &Header,
        index: usize,
        item: &PutItem<'_>,
    ) -> Result<ReserveRequest, Status> {
        // What is in memory only survives nothing.
        if item.durable && self.context.store.config().durability == Durability::Memory {
            return Err(Status::Unsupported);
        }
        if item.length > self.context.limits().value {
            return Err(Status::TooLarge);
        }
        let key = self.full_key(item.key).map_err(|_| Status::BadRequest)?;
        Ok(ReserveRequest {
            hash: self.context.store.hasher().hash(&key),
            key,
            length: item.length,
            mode: match item.mode {
                PutMode::Absent => Mode::Absent,
                PutMode::Replace => Mode::Replace,
                PutMode::Generation(generation) => Mode::Generation(generation),
            },
            ttl_seconds: self.context.ttl(&self.namespace, item.ttl_seconds),
            parent: item.advice.parent.and_then(|parent| self.hash(parent)),
            pin: Duration::from_secs(u64::from(item.advice.pin_seconds)),
            durable: item.durable,
            deadline: self.deadline(header),
            caller: self.caller(header, index),
        })
    }

    async fn place_inline(
        self: &Rc<Self>,
        item: &Inline,
        payload: &mut Payload,
        in_hand: &mut Row<InHand>,
        replies: &mut [ItemReply],
    ) -> Result<Writes, Refusal> {
        let context = &self.context;
        let since = context.local.now();
        let mut reserve = pin!(context.store.reserve(item.request.clone()));
        let reserved = match self.soon(reserve.as_mut()).await {
            Some(reserved) => reserved,
            None => {
                // Another put of this key may be waiting for a checkpoint.
                payload.leave_pool();
                self.commit_all(in_hand, replies).await;
                reserve.await
            }
        };
        context.counters.wait_reserve.record(context.local.now().saturating_duration_since(since));
        let mut writes = Writes::new(reserved?);
        let (mut at, end) = (item.at, item.at + item.request.length as usize);
        while at < end {
            let mut place = match writes.try_place(context) {
                Some(ready) => ready,
                None => {
                    payload.leave_pool();
                    self.commit_all(in_hand, replies).await;
                    writes.next_place(context).await
                }
            };
            payload.copy(at, place.buffer.as_mut_slice(), writes.crc());
            at += place.buffer.len();
            writes.arrived(context, place);
        }
        if payload.is_staged() {
            context.counters.staged_bytes.add(item.request.length);
        }
        Ok(writes)
    }

    /// Waits for the writes and commits: from here on nothing gives the block up but a failure.
    async fn commit(&self, mut writes: Writes, length: u64) -> ItemReply {
        let context = &self.context;
        let since = context.local.now();
        if let Err(error) = writes.finish(context).await {
            writes.abandon(context).await;
            return match error {
                WriteError::Drive => replies::item(Status::IoError),
                WriteError::Refused(refusal) => replies::refusal(&refusal, length),
            };
        }
        let written = context.local.now();
        context.counters.wait_write.record(written.saturating_duration_since(since));
        let (reservation, crcs) = writes.into_commit();
        let stored = reservation.commit(crcs).await;
        let now = context.local.now();
        context.counters.wait_commit.record(now.saturating_duration_since(written));
        if self.closed.get() {
            context.counters.lost_after_append.bump();
        }
        match stored {
            Ok(stored) => {
                context.counters.writes.bump();
                context.counters.write_bytes.add(length);
                replies::stored(length, stored.generation)
            }
            Err(Some(CommitError::Refused(refusal))) => replies::refusal(&refusal, length),
            Err(_) => replies::item(Status::IoError),
        }
    }

    /// Offer: a place for each item that is not there yet.
    pub async fn offer(self: &Rc<Self>, header: &Header, meta: &[u8]) -> Result<(), MetaError> {
        let put = PutItems::parse_into(meta, spare::vec::<PutItem<'static>>())?;
        let items = put.items;
        self.named_by_put(&items);
        let mut replies: Row<ItemReply> =
            items.iter().map(|_| replies::item(Status::BadRequest)).collect();
        let mut requests = Row::new();
        for (index, item) in items.iter().enumerate() {
            match self.reserve_request(header, index, item) {
                Ok(request) => requests.push((index, request)),
                Err(status) => replies[index] = replies::item(status),
            }
        }
        spare::keep_vec(spare::renamed::<_, PutItem<'static>>(items));
        requests.sort_unstable_by_key(|(index, request)| (request.hash, *index));
        for (index, request) in requests {
            replies[index] = self.offer_one(header, index as u32, request).await;
        }
        self.offers.told(self, header.request_id(), self.deadline(header));
        self.answer_offer(header, &replies);
        Ok(())
    }

    async fn offer_one(
        self: &Rc<Self>,
        header: &Header,
        item: u32,
        request: ReserveRequest,
    ) -> ItemReply {
        let name = (header.request_id(), item);
        if self.offers.has(name) {
            return replies::item(Status::BadRequest);
        }
        if self.offers.len() >= self.context.limits().offers as usize {
            return replies::item(Status::LimitExceeded);
        }
        let length = request.length;
        match self.promised_place(request).await {
            // The client left while we waited: the place goes back at once.
            Ok(_) if self.closed.get() => replies::item(Status::ShuttingDown),
            // Another request of the same number was faster.
            Ok(_) if self.offers.has(name) => replies::item(Status::BadRequest),
            Ok(place) => {
                self.offers.add(name, place);
                ItemReply { length, ..replies::item(Status::Want) }
            }
            Err(reply) => reply,
        }
    }

    /// A place for a value, and the promise to take its bytes; the answer of one that gets none.
    pub async fn promised_place(&self, request: ReserveRequest) -> Result<Place, ItemReply> {
        let context = &self.context;
        if self.retired.get() {
            return Err(replies::item(Status::ShuttingDown));
        }
        if let Err(retry_ms) = self.share.admits() {
            context.counters.busy.bump();
            return Err(ItemReply::busy(retry_ms));
        }
        let length = request.length;
        let promise = self.share.promise(length);
        let since = context.local.now();
        let reserved = context.store.reserve(request).await;
        context.counters.wait_reserve.record(context.local.now().saturating_duration_since(since));
        match reserved {
            Ok(reservation) => Ok((reservation, promise)),
            Err(refusal) => Err(replies::refusal(&refusal, length)),
        }
    }

    /// Data: the payload of one offered item, straight into its place.
    pub async fn put_data(
        self: &Rc<Self>,
        input: &mut Input,
        opener: &Opener,
        header: Header,
        meta: &[u8],
        began: Instant,
    ) -> Result<(), End> {
        let DataMeta { item } = DataMeta::parse(meta)?;
        let request = header.request_id();
        let offered = self.offers.take((request, item));
        let (reservation, promise) = offered.ok_or(End::NotWanted { request, item })?;
        let (got, offered) = (header.payload_length(), reservation.length());
        if got != offered {
            return Err(End::WrongLength { got, offered });
        }
        let (writes, claimed) = self.take_payload(input, opener, &header, reservation).await?;
        let (permit, work) = self.received(began).await;
        let session = self.clone();
        self.context.local.spawn(async move {
            session.finish_data(&header, item, writes, &claimed, began).await;
            promise.kept(session.context.local.now());
            drop((permit, work));
        });
        Ok(())
    }

    /// The payload of an offered item into its place, and the CRCs behind it. When it does not come, the
    /// place goes back.
    pub async fn take_payload(
        &self,
        input: &mut Input,
        opener: &Opener,
        header: &Header,
        reservation: Reservation,
    ) -> Result<(Writes, CrcList), End> {
        let mut writes = Writes::new(reservation);
        self.receiving.set(true);
        let received = match self.receive(input, header, &mut writes).await {
            Ok(()) => self.claimed(input, opener, header).await,
            Err(end) => Err(end),
        };
        match received {
            Ok(claimed) => Ok((writes, claimed)),
            Err(end) => {
                self.context.counters.lost_after_reserve.bump();
                writes.abandon(&self.context).await;
                Err(end)
            }
        }
    }

    /// The payload of a block, into its places.
    async fn receive(
        &self,
        input: &mut Input,
        header: &Header,
        writes: &mut Writes,
    ) -> Result<(), End> {
        let extents = self.extents_of(header);
        while writes.crcs().len() < extents {
            let mut place = writes.next_place(&self.context).await;
            let (received, buffer) = input.payload(place.buffer, Some(writes.crc())).await;
            received?;
            place.buffer = buffer;
            writes.arrived(&self.context, place);
        }
        Ok(())
    }

    /// The extents of a frame's payload.
    fn extents_of(&self, header: &Header) -> usize {
        (header.payload_length() as usize).div_ceil(self.extent_bytes())
    }

    /// The CRCs behind a payload.
    pub async fn claimed(
        &self,
        input: &mut Input,
        opener: &Opener,
        header: &Header,
    ) -> Result<CrcList, End> {
        let extents = self.extents_of(header);
        if !header.has_trailer() || extents > MAX_EXTENTS {
            return Err(End::NoTrailer);
        }
        let trailer = input.bytes(trailer_len(extents)).await?;
        Ok(opener.open_trailer(header.mac(), &trailer)?)
    }

    /// A block's payload is there: it may be finished when there is room for one more request.
    async fn received(&self, began: Instant) -> (LocalPermit, Working) {
        let now = self.context.local.now();
        self.context.counters.wait_receive.record(now.saturating_duration_since(began));
        let permit = self.requests.acquire(1).await;
        self.receives_no_more();
        (permit, self.context.work())
    }

    /// The same of one that has its permit.
    pub fn payload_is_here(&self, began: Instant) {
        let now = self.context.local.now();
        self.context.counters.wait_receive.record(now.saturating_duration_since(began));
        self.receives_no_more();
    }

    fn receives_no_more(&self) {
        self.receiving.set(false);
        self.payload_done.notify_all();
    }

    /// Commits what has arrived, if it is what its putter says that it is.
    pub async fn commit_if(&self, mut writes: Writes, claimed: &CrcList, length: u64) -> ItemReply {
        if claimed.as_slice() == writes.crcs() {
            return self.commit(writes, length).await;
        }
        self.context.counters.crc_refused.bump();
        writes.abandon(&self.context).await;
        replies::item(Status::CrcMismatch)
    }

    async fn finish_data(
        &self,
        header: &Header,
        item: u32,
        writes: Writes,
        claimed: &CrcList,
        began: Instant,
    ) {
        let reply = self.commit_if(writes, claimed, header.payload_length()).await;
        let now = self.context.local.now();
        self.context.counters.put_total.record(now.saturating_duration_since(began));
        let mut meta = Row::new();
        DataReply { item, reply }.encode(&mut meta);
        self.reply(header, Status::Ok, meta);
    }
}
