//! An Offer that brings its payload: one item, from a client that expects that it is wanted.
//!
//! ```text
//! Offer(key, length, payload, CRCs) ─► placed ─► received straight into its place ─► committed ─► reply
//!                                  └─► refused: present, busy, full ─► read and forgotten ─► reply
//! ```
//!
//! It saves the answer to the Offer, which both ends would wait for. The reader waits for the place, and
//! nothing else of this connection is read meanwhile: so it must not come while a place of the same
//! connection waits for payload that would have to be read first.

use std::rc::Rc;

use memkv_poller::Instant;
use memkv_poller::spare::Row;
use memkv_wire::{Header, ItemReplies, ItemReply, Opener, PutItems, Status};

use crate::input::Input;
use crate::replies;
use crate::session::{End, Session};

impl Session {
    /// Serves an Offer with payload; `meta` has its item.
    pub async fn offer_with_payload(
        self: &Rc<Self>,
        input: &mut Input,
        opener: &Opener,
        header: Header,
        meta: &[u8],
        began: Instant,
    ) -> Result<(), End> {
        // Whoever ends this session lets what is under way be answered.
        let permit = self.requests.acquire(1).await;
        let work = self.context.work();
        let item = PutItems::lone(meta).ok_or(End::NotLone)?;
        let (got, offered) = (header.payload_length(), item.length);
        if got != offered {
            return Err(End::WrongLength { got, offered });
        }
        if !self.offers.is_empty() {
            return Err(End::OutOfTurn);
        }
        let place = match self.reserve_request(&header, 0, &item) {
            Ok(request) => self.promised_place(request).await,
            Err(status) => Err(replies::item(status)),
        };
        let (reservation, promise) = match place {
            Ok(place) => place,
            Err(reply) => {
                input.discard(got).await?;
                self.claimed(input, opener, &header).await?;
                self.answer_offer(&header, &[reply]);
                return Ok(());
            }
        };
        let placed = self.context.local.now();
        let (writes, claimed) = self.take_payload(input, opener, &header, reservation).await?;
        self.payload_is_here(placed);
        let session = self.clone();
        self.context.local.spawn(async move {
            let reply = session.commit_if(writes, &claimed, got).await;
            let now = session.context.local.now();
            session.context.counters.put_total.record(now.saturating_duration_since(began));
            session.answer_offer(&header, &[reply]);
            promise.kept(now);
            drop((permit, work));
        });
        Ok(())
    }

    /// Answers an Offer, item by item.
    pub fn answer_offer(&self, header: &Header, items: &[ItemReply]) {
        let mut meta = Row::new();
        ItemReplies::encode_all(items, &mut meta);
        self.reply(header, Status::Ok, meta);
    }
}
