//! One connection of the test server.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use memkv_net::shm::Staged;
use memkv_wire::handshake::{ClientHello, ServerHello, connect_keys, session_keys};
use memkv_wire::meta::{
    DataMeta, DataReply, DeleteItems, GetItem, GetItems, GetReply, GoodbyeMeta, HintList,
    ItemReplies, ItemReply, KeyList, LeaseList, MatchItems, MatchReply, NamedReply, PresenceReply,
    PutAdvice, PutItem, PutItems, PutMode, Refusal, StatsReply, SuspectItems,
};
use memkv_wire::{
    CrcList, CreditAccount, HEADER_LEN, Header, MissReason, Opcode, Opener, Sealer, Side, Span,
    Spans, StatId, Status, crc32c, trailer_len,
};

use super::{Seen, Shared, Stored, Trick, World};

/// How long a lazy server waits for another request.
const LAZY: Duration = Duration::from_millis(20);

/// The end of a connection, with its reason; tests look at the client's side of it.
pub struct Ended;

impl From<io::Error> for Ended {
    fn from(_: io::Error) -> Ended {
        Ended
    }
}

struct Connection<'a> {
    stream: &'a TcpStream,
    shared: &'a Shared,
    number: usize,
    sealer: Sealer,
    opener: Opener,
    client_id: [u8; 16],
    credits: CreditAccount,
    held: Vec<(Header, Vec<u8>)>,
    /// Offers by request id: what was wanted.
    offers: Vec<(u64, Vec<Offered>)>,
    answers_presence: bool,
    /// Bytes of payload that were named.
    named: u64,
    /// Memory of the client's, and its number.
    staged: Option<(u64, Arc<Staged>)>,
}

struct Offered {
    key: Vec<u8>,
    length: u64,
    mode: PutMode,
}

struct Request {
    header: Header,
    meta: Vec<u8>,
    payload: Vec<u8>,
    crcs: CrcList,
    trick: Option<Trick>,
}

/// Serves one connection to its end.
pub fn serve(stream: &TcpStream, number: usize, shared: &Shared) -> Result<(), Ended> {
    if shared.setup.mute {
        return silence(stream);
    }
    let mut connection = greet(stream, number, shared)?;
    loop {
        let Some(request) = connection.receive()? else {
            connection.flush()?;
            continue;
        };
        connection.answer(&request)?;
    }
}

/// Reads and ignores until the peer closes.
fn silence(mut stream: &TcpStream) -> Result<(), Ended> {
    let mut sink = [0; 4096];
    while stream.read(&mut sink)? > 0 {}
    Err(Ended)
}

fn greet<'a>(
    mut stream: &'a TcpStream,
    number: usize,
    shared: &'a Shared,
) -> Result<Connection<'a>, Ended> {
    let setup = &shared.setup;
    let mut raw = [0; HEADER_LEN];
    stream.read_exact(&mut raw)?;
    let peeked = memkv_wire::handshake::peek_connect(&raw).map_err(|_| Ended)?;
    let mut meta = vec![0; peeked.meta_length() as usize];
    stream.read_exact(&mut meta)?;
    let hello = ClientHello::parse(&meta).map_err(|_| Ended)?;
    let (mut sealer, mut opener) = connect_keys(&setup.key, hello.key_id, Side::Server);
    let header = opener.open(&raw, &meta).map_err(|_| Ended)?;
    let mut out = Vec::new();
    let mut body = Vec::new();
    if let Some(status) = setup.refuse {
        Refusal { retry_ms: 0, text: "go away" }.encode(&mut body);
        sealer.seal(&mut Header::reply(&header, status), &body, &mut out);
        stream.write_all(&out)?;
        return Err(Ended);
    }
    let answer = ServerHello {
        server_nonce: [9; 32],
        client_nonce: hello.client_nonce,
        server_id: [1; 16],
        incarnation: 1,
        namespace: 77,
        version: 1,
        limits: setup.limits,
        payload_with_offer: setup.payload_with_offer,
        answers_presence: setup.answers_presence && !shared.world().older,
        door: setup.shows.as_ref().filter(|_| hello.reads_windows).map(|shown| shown.told()),
        takes_staged: setup.takes_staged && hello.reads_windows,
    };
    answer.encode(&mut body);
    sealer.seal(&mut Header::reply(&header, Status::Ok), &body, &mut out);
    stream.write_all(&out)?;
    let (client, server) = (&hello.client_nonce, &answer.server_nonce);
    let (sealer, opener) = session_keys(&setup.key, hello.key_id, 1, client, server, Side::Server);
    Ok(Connection {
        stream,
        shared,
        number,
        sealer,
        opener,
        client_id: hello.client_id,
        credits: CreditAccount::new(setup.limits.credits),
        held: Vec::new(),
        offers: Vec::new(),
        answers_presence: answer.answers_presence,
        named: 0,
        staged: None,
    })
}

impl Connection<'_> {
    /// The next request; `None` when a lazy server has waited long enough for one.
    fn receive(&mut self) -> Result<Option<Request>, Ended> {
        let mut stream = self.stream;
        let mut raw = [0; HEADER_LEN];
        let patience = (!self.held.is_empty()).then_some(LAZY);
        stream.set_read_timeout(patience)?;
        match stream.peek(&mut [0]) {
            Ok(0) => return Err(Ended),
            Ok(_) => {}
            Err(error) if patience.is_some() && error.kind() == io::ErrorKind::WouldBlock => {
                return Ok(None);
            }
            Err(_) => return Err(Ended),
        }
        stream.set_read_timeout(None)?;
        stream.read_exact(&mut raw)?;
        let peeked = self.opener.peek(&raw).map_err(|_| Ended)?;
        let mut meta = vec![0; peeked.meta_length() as usize];
        stream.read_exact(&mut meta)?;
        let header = self.opener.open(&raw, &meta).expect("the client's frames are authentic");
        assert_eq!(header.namespace(), 77, "the namespace handle of the handshake");
        assert!(header.deadline_ms() > 0, "every request says how long it may take");
        assert_eq!(header.consumed(), self.named, "all that was named was taken before");
        let mut payload = vec![0; header.payload_length() as usize];
        stream.read_exact(&mut payload)?;
        let mut crcs = CrcList::EMPTY;
        if header.has_trailer() {
            let extent = self.shared.setup.limits.extent as usize;
            let mut trailer = vec![0; trailer_len(payload.len().div_ceil(extent))];
            stream.read_exact(&mut trailer)?;
            crcs = self.opener.open_trailer(header.mac(), &trailer).expect("a good trailer");
        }
        if header.opcode() == Opcode::Put && header.is_named() {
            payload = self.fetch(&meta);
        }
        let trick = self.note(&header, &meta);
        Ok(Some(Request { header, meta, payload, crcs, trick }))
    }

    /// The payload of a put that names it.
    fn fetch(&mut self, meta: &[u8]) -> Vec<u8> {
        let (put, place) = PutItems::parse_staged(meta, Vec::new()).expect("it names its payload");
        if self.staged.as_ref().is_none_or(|(number, _)| *number != place.staging) {
            let shown = self.shared.setup.shows.as_ref().expect("the hello says so");
            let memory = shown.claim(place.staging).expect("the client has brought it");
            assert!(self.staged.is_none(), "it brings memory once for a connection");
            self.staged = Some((place.staging, memory));
        }
        let mut payload = vec![0; put.inline_length().expect("as much as may be") as usize];
        let (_, memory) = self.staged.as_ref().expect("it was claimed");
        memory.read(place.offset, &mut payload);
        payload
    }

    /// Writes the request down and takes the trick that is meant for it.
    fn note(&mut self, header: &Header, meta: &[u8]) -> Option<Trick> {
        let mut world = self.shared.world();
        let items = match header.opcode() {
            Opcode::Stats | Opcode::Data => 1,
            Opcode::Hint => HintList::parse(meta).expect("hints").keys.len(),
            Opcode::Lease => LeaseList::parse(meta).expect("leases").keys.len(),
            _ => u32::from_le_bytes(*meta.first_chunk().expect("a count")) as usize,
        };
        assert!(items <= self.shared.setup.limits.max_items as usize, "the limit of items");
        world.seen.push(Seen {
            connection: self.number,
            client_id: self.client_id,
            opcode: header.opcode(),
            request_id: header.request_id(),
            items,
            payload: header.payload_length(),
            trace: header.trace_id(),
        });
        let wanted = header.opcode();
        let at = world.tricks.iter().position(|(opcode, _)| *opcode == wanted)?;
        world.tricks.remove(at).map(|(_, trick)| trick)
    }

    fn answer(&mut self, request: &Request) -> Result<(), Ended> {
        match request.trick {
            Some(Trick::CloseBefore) => return Err(Ended),
            Some(Trick::Silent) => return silence(self.stream),
            Some(Trick::Goodbye) => {
                let mut meta = Vec::new();
                GoodbyeMeta { text: "for now" }.encode(&mut meta);
                self.write(Header::request(Opcode::Goodbye, 0), &meta, &[])?;
                return Err(Ended);
            }
            Some(Trick::Refuse(status, retry_ms)) => {
                let mut meta = Vec::new();
                Refusal { retry_ms, text: "not now" }.encode(&mut meta);
                let inline = request.header.opcode() == Opcode::Put;
                let header = Header::reply(&request.header, status).with_credits(u32::from(inline));
                return self.write(header, &meta, &[]);
            }
            _ => {}
        }
        match request.header.opcode() {
            Opcode::Put => self.put(request),
            Opcode::Offer => self.offer(request),
            Opcode::Data => self.data(request),
            Opcode::Get => self.get(request),
            _ => self.small(request),
        }
    }

    /// Writes down what is said of items besides.
    fn take_advice(&self, items: &[PutItem<'_>]) {
        let said = items.iter().filter(|item| item.advice != PutAdvice::default());
        self.shared.world().advised.extend(said.map(|item| {
            let parent = item.advice.parent.map(<[u8]>::to_vec);
            (item.key.to_vec(), parent, item.advice.pin_seconds)
        }));
    }

    fn put(&mut self, request: &Request) -> Result<(), Ended> {
        self.credits.take(1).expect("a put has a credit");
        let limit = self.shared.setup.limits.max_inline as usize;
        assert!(request.payload.len() <= limit, "inline puts are small");
        let put = match request.header.is_named() {
            true => PutItems::parse_staged(&request.meta, Vec::new()).map(|(put, _)| put),
            false => PutItems::parse(&request.meta),
        };
        let items = put.expect("a good meta").items;
        self.take_advice(&items);
        let mut at = 0;
        let name = (self.client_id, request.header.request_id());
        let known = self.shared.world().remembered.get(&name).cloned();
        let replies = known.unwrap_or_else(|| {
            let mut replies = Vec::new();
            for (place, item) in items.iter().enumerate() {
                let value = &request.payload[at..at + item.length as usize];
                at += value.len();
                replies.push(match first(request, place) {
                    Some(reply) => reply,
                    None => self.store(item, value, &item.crcs),
                });
            }
            replies
        });
        self.shared.world().remembered.insert(name, replies.clone());
        if request.trick == Some(Trick::CloseAfter) {
            return Err(Ended);
        }
        let mut meta = Vec::new();
        ItemReplies { items: replies }.encode(&mut meta);
        let header = Header::reply(&request.header, Status::Ok).with_credits(1);
        if self.shared.setup.lazy {
            self.held.push((header, meta));
            return Ok(());
        }
        self.credits.put_back(1).expect("it was taken");
        self.send(request, header, &meta, &[])
    }

    /// Sends the replies that a lazy server has held back.
    fn flush(&mut self) -> Result<(), Ended> {
        for (header, meta) in std::mem::take(&mut self.held) {
            self.credits.put_back(1).expect("it was taken");
            self.write(header, &meta, &[])?;
        }
        Ok(())
    }

    fn store(&self, item: &PutItem<'_>, value: &[u8], crcs: &CrcList) -> ItemReply {
        let extent = self.shared.setup.limits.extent as usize;
        if CrcList::of(value, extent).as_ref() != Some(crcs) {
            return ItemReply::new(Status::CrcMismatch);
        }
        let mut world = self.shared.world();
        if let Err(reply) = admit(&world, item) {
            return reply;
        }
        world.generations += 1;
        let generation = world.generations;
        world.blocks.insert(item.key.to_vec(), Stored { value: value.to_vec(), generation });
        ItemReply { generation, length: item.length, ..ItemReply::new(Status::Ok) }
    }

    fn offer(&mut self, request: &Request) -> Result<(), Ended> {
        let items = PutItems::parse(&request.meta).expect("a good meta").items;
        self.take_advice(&items);
        let name = (self.client_id, request.header.request_id());
        let known = self.shared.world().remembered.get(&name).cloned();
        if known.is_some() || !request.payload.is_empty() {
            return self.answer_lone(request, &items, known);
        }
        let mut offered = Vec::new();
        let mut replies = Vec::new();
        for (place, item) in items.iter().enumerate() {
            let (key, length, mode) = (item.key.to_vec(), item.length, item.mode);
            let twice = offered.iter().any(|other: &Offered| other.key == key);
            assert!(!twice, "the second would wait for the first");
            replies.push(match first(request, place) {
                Some(reply) => reply,
                None => match admit(&self.shared.world(), item) {
                    Ok(()) => ItemReply::new(Status::Want),
                    Err(reply) => reply,
                },
            });
            offered.push(Offered { key, length, mode });
        }
        self.offers.push((request.header.request_id(), offered));
        let mut meta = Vec::new();
        ItemReplies { items: replies }.encode(&mut meta);
        self.send(request, Header::reply(&request.header, Status::Ok), &meta, &[])
    }

    /// An offer whose bytes came with it, or that was carried out before.
    fn answer_lone(
        &mut self,
        request: &Request,
        items: &[PutItem<'_>],
        known: Option<Vec<ItemReply>>,
    ) -> Result<(), Ended> {
        let [item] = items else { panic!("payload is one item's") };
        let replies = known.unwrap_or_else(|| {
            assert!(self.shared.setup.payload_with_offer, "the hello says who takes it");
            assert_eq!(item.length, request.payload.len() as u64);
            let reply = first(request, 0);
            vec![reply.unwrap_or_else(|| self.store(item, &request.payload, &request.crcs))]
        });
        let name = (self.client_id, request.header.request_id());
        self.shared.world().remembered.insert(name, replies.clone());
        if request.trick == Some(Trick::CloseAfter) {
            return Err(Ended);
        }
        let mut meta = Vec::new();
        ItemReplies { items: replies }.encode(&mut meta);
        self.send(request, Header::reply(&request.header, Status::Ok), &meta, &[])
    }

    fn data(&mut self, request: &Request) -> Result<(), Ended> {
        let item = DataMeta::parse(&request.meta).expect("a good meta").item;
        let id = request.header.request_id();
        let offer = self.offers.iter().find(|(offer, _)| *offer == id).expect("an offer");
        let offered = &offer.1[item as usize];
        assert_eq!(offered.length, request.payload.len() as u64);
        let wire = PutItem {
            key: &offered.key,
            length: offered.length,
            mode: offered.mode,
            durable: false,
            ttl_seconds: 0,
            crcs: CrcList::EMPTY,
            advice: PutAdvice::default(),
        };
        let reply = match first(request, 0) {
            Some(reply) => reply,
            None => self.store(&wire, &request.payload, &request.crcs),
        };
        if request.trick == Some(Trick::CloseAfter) {
            return Err(Ended);
        }
        let mut meta = Vec::new();
        DataReply { item, reply }.encode(&mut meta);
        self.send(request, Header::reply(&request.header, Status::Ok), &meta, &[])
    }

    fn get(&mut self, request: &Request) -> Result<(), Ended> {
        let items = GetItems::parse(&request.meta).expect("a good meta").items;
        let mut order: Vec<usize> = (0..items.len()).collect();
        if self.shared.setup.backwards {
            order.reverse();
        }
        for (nth, place) in order.into_iter().enumerate() {
            self.get_one(request, place, &items[place], nth + 1 == items.len())?;
        }
        Ok(())
    }

    fn get_one(
        &mut self,
        request: &Request,
        place: usize,
        item: &GetItem<'_>,
        last: bool,
    ) -> Result<(), Ended> {
        let stored = self.shared.world().blocks.get(item.key).cloned();
        let mut header = Header::reply(&request.header, Status::Ok);
        if !last {
            header = header.with_more();
        }
        let refused = first(request, place).or(match stored {
            Some(_) => None,
            None => Some(ItemReply::miss(MissReason::Evicted)),
        });
        let mut meta = Vec::new();
        if let Some(reply) = refused {
            GetReply { item: place as u32, offset: 0, reply }.encode(&mut meta);
            return self.send(request, header, &meta, &[]);
        }
        let Stored { value, generation } = stored.expect("found above");
        let length = value.len() as u64;
        let end = item.offset.saturating_add(item.length).min(length);
        let mut bytes = value[item.offset as usize..end.max(item.offset) as usize].to_vec();
        let mut crcs = range_crcs(&bytes, item.offset, self.shared.setup.limits.extent);
        match request.trick.filter(|_| place == 0) {
            Some(Trick::BadCrc) => crcs[0] ^= 1,
            Some(Trick::TooMuch) => bytes.push(0),
            _ => {}
        }
        let list = CrcList::from_slice(&crcs).expect("at most 16");
        if request.header.is_named() && !bytes.is_empty() {
            return self.name(request, place, item, (length, generation, list), &bytes);
        }
        let in_meta = if self.shared.setup.trailer { CrcList::EMPTY } else { list };
        let reply = ItemReply { length, generation, crcs: in_meta, ..ItemReply::new(Status::Ok) };
        GetReply { item: place as u32, offset: item.offset, reply }.encode(&mut meta);
        header = header.with_payload_length(bytes.len() as u64);
        if self.shared.setup.trailer {
            header = header.with_trailer();
            let mut out = Vec::new();
            self.sealer.seal(&mut header, &meta, &mut out);
            out.extend_from_slice(&bytes);
            self.sealer.seal_trailer(header.mac(), &crcs, &mut out);
            return Ok((&mut &*self.stream).write_all(&out)?);
        }
        self.send(request, header, &meta, &bytes)
    }

    fn name(
        &mut self,
        request: &Request,
        place: usize,
        item: &GetItem<'_>,
        (length, generation, crcs): (u64, u64, CrcList),
        bytes: &[u8],
    ) -> Result<(), Ended> {
        let setup = &self.shared.setup;
        let shown = setup.shows.as_ref().expect("the hello says who names payload");
        let mut spans = shown.lay(bytes, setup.limits.extent as usize);
        if request.trick == Some(Trick::Beyond) {
            let span = Span { offset: (64 << 20) - u64::from(spans[0].length) + 1, ..spans[0] };
            spans = Spans::EMPTY;
            assert!(spans.push(span), "one span");
        }
        self.named += bytes.len() as u64;
        let reply = ItemReply { length, generation, crcs, ..ItemReply::new(Status::Ok) };
        let get = GetReply { item: place as u32, offset: item.offset, reply };
        let mut meta = Vec::new();
        NamedReply { get, spans }.encode(&mut meta);
        let header = Header::reply(&request.header, Status::Ok).with_named();
        self.send(request, header, &meta, &[])
    }

    fn small(&mut self, request: &Request) -> Result<(), Ended> {
        let mut meta = Vec::new();
        match request.header.opcode() {
            Opcode::MatchPrefix => {
                let items = MatchItems::parse(&request.meta).expect("a good meta").items;
                let world = self.shared.world();
                let missing = items.iter().find(|item| !world.blocks.contains_key(item.key));
                let first_missing = missing.map_or(MatchReply::NONE, |item| item.position);
                MatchReply { first_missing, examined: items.len() as u32 }.encode(&mut meta);
            }
            Opcode::Presence => {
                assert!(self.answers_presence, "the hello says who answers it");
                let keys = KeyList::parse(&request.meta).expect("a good meta").keys;
                let world = self.shared.world();
                let missing =
                    |key: &[u8]| (!world.blocks.contains_key(key)).then_some(MissReason::Never);
                let mut missing: Vec<_> = keys.into_iter().map(missing).collect();
                if request.trick == Some(Trick::TooMuch) {
                    missing.push(None);
                }
                PresenceReply { missing }.encode(&mut meta);
            }
            Opcode::Stats => {
                let mut stats = StatsReply::default();
                stats.push(StatId::Blocks, self.shared.world().blocks.len() as u64);
                stats.encode(&mut meta);
            }
            Opcode::Release => {
                let keys = KeyList::parse(&request.meta).expect("a good meta").keys;
                let mut world = self.shared.world();
                for key in keys {
                    world.leases.remove(key);
                }
            }
            _ => {
                // Tricks on the first item are played on requests of one item, which is then left undone.
                let items = match first(request, 0) {
                    Some(reply) => vec![reply],
                    None => self.small_items(request),
                };
                ItemReplies { items }.encode(&mut meta);
            }
        }
        if request.trick == Some(Trick::CloseAfter) {
            return Err(Ended);
        }
        self.send(request, Header::reply(&request.header, Status::Ok), &meta, &[])
    }

    fn small_items(&self, request: &Request) -> Vec<ItemReply> {
        let meta = &request.meta;
        let mut world = self.shared.world();
        let found = |world: &World, key: &[u8]| match world.blocks.get(key) {
            Some(Stored { value, generation }) => {
                let (length, generation) = (value.len() as u64, *generation);
                ItemReply { length, generation, ..ItemReply::new(Status::Ok) }
            }
            None => ItemReply::miss(MissReason::Never),
        };
        match request.header.opcode() {
            Opcode::Exists => {
                let keys = KeyList::parse(meta).expect("a good meta").keys;
                keys.into_iter().map(|key| found(&world, key)).collect()
            }
            Opcode::Lease => {
                let keys = LeaseList::parse(meta).expect("a good meta").keys;
                world.leases.extend(keys.iter().map(|key| key.to_vec()));
                keys.into_iter().map(|key| found(&world, key)).collect()
            }
            Opcode::Hint => {
                let list = HintList::parse(meta).expect("a good meta");
                let said = |key: &&[u8]| (list.advice, list.seconds, key.to_vec());
                world.hints.extend(list.keys.iter().map(said));
                list.keys.into_iter().map(|key| found(&world, key)).collect()
            }
            Opcode::Delete => {
                let items = DeleteItems::parse(meta).expect("a good meta").items;
                let mut delete = |key: &[u8], generation: u64| {
                    let reply = found(&world, key);
                    if reply.status == Status::Ok && ![0, reply.generation].contains(&generation) {
                        return ItemReply { status: Status::GenerationMismatch, ..reply };
                    }
                    world.blocks.remove(key);
                    reply
                };
                items.into_iter().map(|item| delete(item.key, item.generation)).collect()
            }
            Opcode::Suspect => {
                let items = SuspectItems::parse(meta).expect("a good meta").items;
                let suspects = items.iter().map(|item| (item.key.to_vec(), item.generation));
                world.suspects.extend(suspects);
                items.iter().map(|_| ItemReply::new(Status::Ok)).collect()
            }
            opcode => unreachable!("{opcode} is not served here"),
        }
    }

    /// Sends a reply, spoilt as the request's trick says.
    fn send(
        &mut self,
        request: &Request,
        header: Header,
        meta: &[u8],
        payload: &[u8],
    ) -> Result<(), Ended> {
        let mut stream = self.stream;
        match request.trick {
            Some(Trick::OtherRequest) => {
                let mut other = Header::request(header.opcode(), header.request_id() ^ 1);
                other = Header::reply(&other, header.status()).with_credits(header.credits());
                self.write(other, meta, &[])
            }
            Some(Trick::BadMac) => {
                let mut out = Vec::new();
                let mut header = header;
                self.sealer.seal(&mut header, meta, &mut out);
                out[HEADER_LEN - 1] ^= 1;
                Ok(stream.write_all(&out)?)
            }
            Some(trick @ (Trick::CloseInPayload | Trick::SilentInPayload)) => {
                let mut out = Vec::new();
                let mut header = header;
                self.sealer.seal(&mut header, meta, &mut out);
                out.extend_from_slice(&payload[..payload.len() / 2]);
                stream.write_all(&out)?;
                match trick {
                    Trick::SilentInPayload => silence(stream),
                    _ => Err(Ended),
                }
            }
            _ => self.write(header, meta, payload),
        }
    }

    fn write(&mut self, mut header: Header, meta: &[u8], payload: &[u8]) -> Result<(), Ended> {
        let mut out = Vec::new();
        let payload_length = payload.len() as u64;
        header = header.with_payload_length(payload_length);
        self.sealer.seal(&mut header, meta, &mut out);
        out.extend_from_slice(payload);
        let mut stream = self.stream;
        Ok(stream.write_all(&out)?)
    }
}

/// The answer that the trick prescribes for the first item.
fn first(request: &Request, place: usize) -> Option<ItemReply> {
    match request.trick {
        Some(Trick::First(status, retry_ms)) if place == 0 => {
            Some(ItemReply { retry_ms, ..ItemReply::new(status) })
        }
        _ => None,
    }
}

/// Whether a put may go ahead.
fn admit(world: &World, item: &PutItem<'_>) -> Result<(), ItemReply> {
    let stored = world.blocks.get(item.key);
    let generation = stored.map_or(0, |stored| stored.generation);
    let length = stored.map_or(0, |stored| stored.value.len() as u64);
    let crcs = stored.map_or(CrcList::EMPTY, |stored| {
        CrcList::from_slice(&[crc32c(&stored.value)]).expect("one")
    });
    let reply = |status| ItemReply { generation, length, crcs, ..ItemReply::new(status) };
    match item.mode {
        PutMode::Absent if length == item.length => Err(reply(Status::Present)),
        PutMode::Absent if length > 0 => Err(reply(Status::Conflict)),
        PutMode::Generation(wanted) if wanted != generation => {
            Err(reply(Status::GenerationMismatch))
        }
        _ => Ok(()),
    }
}

/// One CRC per extent that the range touches.
fn range_crcs(bytes: &[u8], offset: u64, extent: u32) -> Vec<u32> {
    let extent = extent as usize;
    let head = (extent - offset as usize % extent).min(bytes.len());
    let (head, rest) = bytes.split_at(head);
    let pieces = std::iter::once(head).chain(rest.chunks(extent));
    pieces.filter(|piece| !piece.is_empty()).map(crc32c).collect()
}
