//! Whether the payload of an offer goes with it, without waiting for the answer.
//!
//! The answer to an Offer takes both ends as long as it takes to move a quarter of a MiB on one machine, and
//! a round trip between two. A value that the server has already, or cannot take now, was sent in vain,
//! which costs more the longer it is. So a lone value of moderate length goes with its offer while the
//! answers of late say that it is wanted; after one that was not, so many others have to be wanted first, and
//! after each further one more.

/// Longest value that goes with its offer, in bytes: of longer ones the answer is a small part.
const LENGTH_MAX: u64 = 4 << 20;
/// Values in a row that must have been wanted before.
const WANTED_MIN: u32 = 2;
/// Values that must be wanted after one in vain; and at most.
const REST_MIN: u32 = 64;
const REST_MAX: u32 = 4096;

/// The account of one connection.
#[derive(Debug)]
pub(crate) struct Unasked {
    /// The server takes it.
    taken: bool,
    /// Values that still have to be wanted before one goes with its offer.
    left: u32,
    /// What `left` becomes after one in vain.
    rest: u32,
}

impl Unasked {
    /// Of a new connection, to a server that takes payload with an offer or does not.
    pub fn new(taken: bool) -> Unasked {
        Unasked { taken, left: WANTED_MIN, rest: REST_MIN }
    }

    /// Whether a value of this length is to go with its offer.
    pub fn may_go(&self, length: u64) -> bool {
        self.taken && self.left == 0 && length <= LENGTH_MAX
    }

    /// A value that was offered first was wanted, or was not.
    pub fn answered(&mut self, wanted: bool) {
        self.left = if wanted { self.left.saturating_sub(1) } else { self.left.max(WANTED_MIN) };
    }

    /// A value that went with its offer was stored, or was sent in vain.
    pub fn went(&mut self, stored: bool) {
        if stored {
            self.rest = REST_MIN;
        } else {
            self.left = self.rest;
            self.rest = REST_MAX.min(self.rest * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offers that have to be wanted until a value goes along.
    fn until_it_goes(unasked: &mut Unasked) -> u32 {
        let mut offers = 0;
        while !unasked.may_go(1) {
            unasked.answered(true);
            offers += 1;
        }
        offers
    }

    #[test]
    fn values_go_along_once_some_were_wanted_and_not_to_a_server_that_does_not_take_them() {
        let mut unasked = Unasked::new(true);
        assert_eq!(until_it_goes(&mut unasked), WANTED_MIN);
        assert!(unasked.may_go(LENGTH_MAX) && !unasked.may_go(LENGTH_MAX + 1));
        let mut never = Unasked::new(false);
        (0..100).for_each(|_| never.answered(true));
        assert!(!never.may_go(1));
    }

    #[test]
    fn after_each_one_in_vain_more_are_offered_first() {
        let mut unasked = Unasked::new(true);
        until_it_goes(&mut unasked);
        let mut rests = Vec::new();
        for _ in 0..8 {
            unasked.went(false);
            rests.push(until_it_goes(&mut unasked));
        }
        assert_eq!(rests, [64, 128, 256, 512, 1024, 2048, 4096, 4096]);
        unasked.went(true);
        unasked.went(false);
        assert_eq!(until_it_goes(&mut unasked), REST_MIN, "one that was stored makes rests short");
    }

    #[test]
    fn an_offer_that_is_not_wanted_ends_the_row() {
        let mut unasked = Unasked::new(true);
        unasked.answered(true);
        unasked.answered(false);
        assert_eq!(until_it_goes(&mut unasked), WANTED_MIN);
        unasked.answered(false);
        assert_eq!(until_it_goes(&mut unasked), WANTED_MIN);
    }
}
