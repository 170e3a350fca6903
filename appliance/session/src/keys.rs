//! Requests that move no payload.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use memkv_poller::Instant;
use memkv_poller::spare::{self, Row};
use memkv_store::{Advice, Existing, KeyHash, Miss, Store};
use memkv_wire as wire;
use memkv_wire::{
    DeleteItem, DeleteItems, Empty, Header, HintList, ItemReplies, KeyList, LeaseList, MatchItem,
    MatchItems, MatchReply, MetaError, MissReason, Opcode, PresenceReply, PutItem, StatsReply,
    Status, SuspectItem, SuspectItems,
};

use crate::join::join_all;
use crate::replies;
use crate::session::Session;

impl Session {
    /// Exists, Presence, MatchPrefix and Stats where the store is on this reactor: there is nothing to wait for.
    pub fn answer_here(
        &self,
        store: &Rc<Store>,
        header: &Header,
        meta: &[u8],
    ) -> Result<(), MetaError> {
        match header.opcode() {
            Opcode::Exists => self.exists_here(store, header, meta),
            Opcode::Presence => self.presence_here(store, header, meta),
            Opcode::MatchPrefix => self.match_prefix_here(store, header, meta),
            _ => self.stats(header, meta),
        }
    }

    /// Every reply goes into the frame's meta as soon as it is known.
    fn exists_here(
        &self,
        store: &Rc<Store>,
        header: &Header,
        meta: &[u8],
    ) -> Result<(), MetaError> {
        let list = KeyList::parse_into(meta, spare::vec::<&'static [u8]>())?;
        let reply = |key: &&[u8]| match self.hash(key) {
            None => replies::item(Status::BadRequest),
            Some(key) => match store.exists_one(key) {
                Ok(existing) => replies::existing(Status::Ok, &existing),
                Err(miss) => replies::miss(miss),
            },
        };
        let mut meta = Row::new();
        ItemReplies::encode_each(list.keys.iter().map(reply), &mut meta);
        self.reply(header, Status::Ok, meta);
        spare::keep_vec(spare::renamed::<_, &'static [u8]>(list.keys));
        Ok(())
    }

    /// As [`Self::exists_here`]. A key of a length that none may have was never stored.
    fn presence_here(
        &self,
        store: &Rc<Store>,
        header: &Header,
        meta: &[u8],
    ) -> Result<(), MetaError> {
        let list = KeyList::parse_into(meta, spare::vec::<&'static [u8]>())?;
        let missing = |key: &&[u8]| match self.hash(key) {
            None => Some(MissReason::Never),
            Some(key) => store.is_there(key).err().map(replies::reason),
        };
        let mut meta = Row::new();
        PresenceReply::encode_each(list.keys.iter().map(missing), &mut meta);
        self.reply(header, Status::Ok, meta);
        spare::keep_vec(spare::renamed::<_, &'static [u8]>(list.keys));
        Ok(())
    }

    /// Exists, and Presence, which is answered in a byte per key: what is stored; pins nothing.
    pub async fn exists(&self, header: &Header, meta: &[u8]) -> Result<(), MetaError> {
        let list = KeyList::parse_into(meta, spare::vec::<&'static [u8]>())?;
        let (keys, places) = self.hashes(&list.keys);
        let count = list.keys.len();
        match self.context.store.exists(keys).await {
            Ok(found) if header.opcode() == Opcode::Presence => {
                self.reply_presence(header, found, &places, count);
            }
            Ok(found) => self.reply_items(header, found, &places, count),
            Err(_) => self.reply(header, Status::ShuttingDown, Row::new()),
        }
        spare::keep_vec(spare::renamed::<_, &'static [u8]>(list.keys));
        Ok(())
    }

    /// Lease: keeps blocks from eviction for a bounded time.
    pub async fn lease(&self, header: &Header, meta: &[u8]) -> Result<(), MetaError> {
        let list = LeaseList::parse_into(meta, spare::vec::<&'static [u8]>())?;
        let (keys, places) = self.hashes(&list.keys);
        let duration = Duration::from_millis(u64::from(list.lease_ms));
        let duration = duration.min(self.context.limits().lease);
        {
            let now = self.context.local.now();
            let mut held = self.held.borrow_mut();
            let full = |held: &BTreeMap<KeyHash, Instant>| {
                let more = keys.iter().filter(|&key| !held.contains_key(key)).count();
                held.len() + more > self.context.limits().leases as usize
            };
            if full(&held) {
                // Leases that ran out are none.
                held.retain(|_, until| *until > now);
            }
            if full(&held) {
                self.refuse(header, Status::LimitExceeded, "too many leases on this connection");
                return Ok(());
            }
            held.extend(keys.iter().map(|&key| (key, now + duration)));
        }
        match self.context.store.hold(keys, self.number, duration).await {
            Ok(found) => self.reply_items(header, found, &places, list.keys.len()),
            Err(_) => self.reply(header, Status::ShuttingDown, Row::new()),
        }
        spare::keep_vec(spare::renamed::<_, &'static [u8]>(list.keys));
        Ok(())
    }

    /// Release: ends leases early.
    pub async fn release(&self, header: &Header, meta: &[u8]) -> Result<(), MetaError> {
        let list = KeyList::parse_into(meta, spare::vec::<&'static [u8]>())?;
        let (keys, _) = self.hashes(&list.keys);
        for key in &keys {
            self.held.borrow_mut().remove(key);
        }
        self.context.store.unhold(keys, self.number).await;
        self.reply(header, Status::Ok, Row::new());
        spare::keep_vec(spare::renamed::<_, &'static [u8]>(list.keys));
        Ok(())
    }

    /// Hint: what will become of a chain; moves its blocks in the order of eviction.
    pub async fn hint(&self, header: &Header, meta: &[u8]) -> Result<(), MetaError> {
        let list = HintList::parse_into(meta, spare::vec::<&'static [u8]>())?;
        let advice = match list.advice {
            wire::Advice::Release => Advice::Release,
            wire::Advice::Retain => Advice::Retain,
            wire::Advice::Pin => Advice::Pin(Duration::from_secs(u64::from(list.seconds))),
        };
        let (keys, places) = self.hashes(&list.keys);
        match self.context.store.advise(keys, advice).await {
            Ok(found) => self.reply_items(header, found, &places, list.keys.len()),
            Err(_) => self.reply(header, Status::ShuttingDown, Row::new()),
        }
        spare::keep_vec(spare::renamed::<_, &'static [u8]>(list.keys));
        Ok(())
    }

    /// MatchPrefix: the position of the first key that is missing here.
    pub async fn match_prefix(&self, header: &Header, meta: &[u8]) -> Result<(), MetaError> {
        let items = self.run_of(meta)?;
        match self.context.store.match_prefix(self.run_hashes(&items)).await {
            Ok(run) => self.reply_run(header, &items, run),
            Err(_) => self.reply(header, Status::ShuttingDown, Row::new()),
        }
        spare::keep_vec(spare::renamed::<_, MatchItem<'static>>(items));
        Ok(())
    }

    fn match_prefix_here(
        &self,
        store: &Rc<Store>,
        header: &Header,
        meta: &[u8],
    ) -> Result<(), MetaError> {
        let items = self.run_of(meta)?;
        let run = store.match_prefix(&self.run_hashes(&items));
        self.reply_run(header, &items, run);
        spare::keep_vec(spare::renamed::<_, MatchItem<'static>>(items));
        Ok(())
    }

    /// The keys of a MatchPrefix in the order of their positions.
    fn run_of<'a>(&self, meta: &'a [u8]) -> Result<Vec<MatchItem<'a>>, MetaError> {
        let memory = spare::vec::<MatchItem<'static>>();
        let MatchItems { mut items } = MatchItems::parse_into(meta, memory)?;
        if !items.is_sorted_by_key(|item| item.position) {
            items.sort_by_key(|item| item.position);
        }
        Ok(items)
    }

    /// Their hashes, up to the first whose length is not allowed.
    fn run_hashes(&self, items: &[MatchItem<'_>]) -> Row<KeyHash> {
        items.iter().map_while(|item| self.hash(item.key)).collect()
    }

    fn reply_run(&self, header: &Header, items: &[MatchItem<'_>], run: usize) {
        let first_missing = items.get(run).map_or(MatchReply::NONE, |item| item.position);
        let examined = (run + 1).min(items.len()) as u32;
        let mut meta = Row::new();
        MatchReply { first_missing, examined }.encode(&mut meta);
        self.reply(header, Status::Ok, meta);
    }

    /// Delete: every item orders after a put of its key that is under way.
    pub async fn delete(self: &Rc<Self>, header: &Header, meta: &[u8]) -> Result<(), MetaError> {
        let DeleteItems { items } =
            DeleteItems::parse_into(meta, spare::vec::<DeleteItem<'static>>())?;
        let deadline = self.deadline(header);
        let deletes = items.iter().enumerate().map(|(index, item)| {
            let caller = self.caller(header, index);
            let (session, key, generation) = (self.clone(), self.hash(item.key), item.generation);
            async move {
                let Some(key) = key else { return replies::item(Status::BadRequest) };
                match session.context.store.delete(key, generation, deadline, caller).await {
                    Ok(deleted) => replies::deleted(deleted),
                    Err(_) => replies::item(Status::ShuttingDown),
                }
            }
        });
        let replies = join_all(deletes).await;
        spare::keep_vec(spare::renamed::<_, DeleteItem<'static>>(items));
        let mut meta = Row::new();
        ItemReplies::encode_all(&replies, &mut meta);
        self.reply(header, Status::Ok, meta);
        Ok(())
    }

    /// Suspect: a getter saw bad bytes.
    pub async fn suspect(&self, header: &Header, meta: &[u8]) -> Result<(), MetaError> {
        let SuspectItems { items } =
            SuspectItems::parse_into(meta, spare::vec::<SuspectItem<'static>>())?;
        let until = self.deadline(header);
        let mut replies = Row::new();
        for item in items.iter().take_while(|_| !self.closed.get()) {
            replies.push(match self.hash(item.key) {
                Some(key) => self.check_block(key, item.generation, until).await,
                None => replies::item(Status::BadRequest),
            });
        }
        let mut meta = Row::new();
        ItemReplies::encode_all(&replies, &mut meta);
        self.reply(header, Status::Ok, meta);
        Ok(())
    }

    /// Stats: the node's figures.
    pub fn stats(&self, header: &Header, meta: &[u8]) -> Result<(), MetaError> {
        // Nothing is asked for but what an extension may say must be understood.
        Empty::parse(meta)?;
        let mut meta = Row::new();
        StatsReply { stats: (self.context.stats)() }.encode(&mut meta);
        self.reply(header, Status::Ok, meta);
        Ok(())
    }

    /// Hashes of the keys whose length is allowed, and where they stood.
    fn hashes(&self, keys: &[&[u8]]) -> (Row<KeyHash>, Row<usize>) {
        let hashed = keys.iter().enumerate().filter_map(|(i, key)| Some((self.hash(key)?, i)));
        hashed.unzip()
    }

    /// Tells the store that a put names blocks in the order of their chain, unless it names parents
    /// instead: then the order means nothing.
    pub fn named_by_put(&self, items: &[PutItem<'_>]) {
        if items.iter().all(|item| item.advice.parent.is_none()) {
            self.named(items.iter().map(|item| item.key));
        }
    }

    /// Tells the store that a request names blocks in the order of their chain. One block alone is
    /// in no order.
    pub fn named<'a>(&self, keys: impl ExactSizeIterator<Item = &'a [u8]>) {
        if keys.len() > 1 {
            self.context.store.named(keys.filter_map(|key| self.hash(key)).collect::<Row<_>>());
        }
    }

    /// A key that has no hash was never stored.
    fn reply_presence(
        &self,
        header: &Header,
        found: Row<Result<Existing, Miss>>,
        places: &[usize],
        count: usize,
    ) {
        let mut missing = Row::new();
        missing.resize(count, Some(MissReason::Never));
        for (found, &place) in found.into_iter().zip(places) {
            missing[place] = found.err().map(replies::reason);
        }
        let mut meta = Row::new();
        PresenceReply::encode_each(missing.iter().copied(), &mut meta);
        self.reply(header, Status::Ok, meta);
    }

    fn reply_items(
        &self,
        header: &Header,
        found: Row<Result<Existing, Miss>>,
        places: &[usize],
        count: usize,
    ) {
        let mut items = Row::new();
        items.resize(count, replies::item(Status::BadRequest));
        for (found, &place) in found.into_iter().zip(places) {
            items[place] = match found {
                Ok(existing) => replies::existing(Status::Ok, &existing),
                Err(miss) => replies::miss(miss),
            };
        }
        let mut meta = Row::new();
        ItemReplies::encode_all(&items, &mut meta);
        self.reply(header, Status::Ok, meta);
    }
}
