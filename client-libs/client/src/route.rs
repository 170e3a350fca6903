//! Which server a key belongs to: weighted rendezvous hashing.
//!
//! Every server draws a number from the key and its own name; the highest draw, weighted, wins. When a
//! server comes or goes, only the keys it wins or won move. All clients of the same list choose alike,
//! whatever the order of the list, and so does every later version: the hashes below are part of the
//! protocol between clients.
//!
//! ```text
//!   s1, s2 = SipHash-2-4-128(key = K1, K2; "host:port")         once per server
//!   draw   = SipHash-2-4(key = s1, s2; the memkv key)
//!   u      = ((draw >> 12) + 0.5) / 2^52                        in (0, 1)
//!   score  = -weight / ln(u)                                    the highest wins
//! ```

use std::hash::Hasher;

use siphasher::sip::SipHasher24;
use siphasher::sip128::{Hasher128, SipHasher24 as SipHasher24_128};

use crate::config::Address;

/// The fixed keys of the first hash: "memkv rendezvous" in ASCII, little-endian.
const K1: u64 = u64::from_le_bytes(*b"memkv re");
const K2: u64 = u64::from_le_bytes(*b"ndezvous");

/// The choice among a fixed list of servers.
#[derive(Debug)]
pub(crate) struct Router {
    servers: Vec<Candidate>,
}

#[derive(Debug)]
struct Candidate {
    hash: [u64; 2],
    weight: f64,
}

impl Router {
    /// For these servers, at least one.
    pub fn new(servers: &[Address]) -> Router {
        assert!(!servers.is_empty(), "the configuration has at least one server");
        let candidate = |address: &Address| {
            let mut hasher = SipHasher24_128::new_with_keys(K1, K2);
            hasher.write(address.name.as_bytes());
            let hash = hasher.finish128();
            Candidate { hash: [hash.h1, hash.h2], weight: f64::from(address.weight) }
        };
        Router { servers: servers.iter().map(candidate).collect() }
    }

    /// The index of the server that `key` belongs to.
    pub fn pick(&self, key: &[u8]) -> usize {
        if self.servers.len() == 1 {
            return 0;
        }
        let scores = self.servers.iter().map(|server| server.score(key));
        let best = scores.enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
        best.expect("there is at least one server").0
    }
}

impl Candidate {
    fn score(&self, key: &[u8]) -> f64 {
        let mut hasher = SipHasher24::new_with_keys(self.hash[0], self.hash[1]);
        hasher.write(key);
        // 52 bits and a half: a number in (0, 1) that f64 holds exactly.
        let draw = ((hasher.finish() >> 12) as f64 + 0.5) / (1_u64 << 52) as f64;
        -self.weight / draw.ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(servers: &[(&str, u32)]) -> Vec<Address> {
        let address = |&(name, weight): &(&str, u32)| Address { name: name.to_owned(), weight };
        servers.iter().map(address).collect()
    }

    fn keys() -> impl Iterator<Item = Vec<u8>> {
        (0..20_000_u32).map(|at| format!("model/block/{at:08x}").into_bytes())
    }

    #[test]
    fn the_choice_is_for_ever() {
        // Changing these answers would make every deployed client lose its blocks.
        let router = Router::new(&addresses(&[("a:1", 1), ("b:2", 1), ("c:3", 2)]));
        let picks: Vec<usize> = keys().take(16).map(|key| router.pick(&key)).collect();
        assert_eq!(picks, [2, 1, 2, 0, 0, 2, 2, 2, 1, 2, 2, 0, 0, 0, 2, 0]);
    }

    #[test]
    fn shares_follow_weights() {
        let router = Router::new(&addresses(&[("a:1", 1), ("b:2", 2), ("c:3", 5)]));
        let mut counts = [0_f64; 3];
        keys().for_each(|key| counts[router.pick(&key)] += 1.0);
        for (count, weight) in counts.into_iter().zip([1.0, 2.0, 5.0]) {
            let share = count / 20_000.0 * 8.0 / weight;
            assert!((0.9..1.1).contains(&share), "{counts:?}");
        }
    }

    #[test]
    fn a_new_server_takes_keys_and_moves_no_others() {
        let old = Router::new(&addresses(&[("a:1", 1), ("b:2", 1)]));
        let new = Router::new(&addresses(&[("c:3", 1), ("b:2", 1), ("a:1", 1)]));
        let mut moved = 0;
        for key in keys() {
            match new.pick(&key) {
                0 => moved += 1,
                // The list is the other way round; the name counts.
                same => assert_eq!(2 - same, old.pick(&key)),
            }
        }
        assert!((6000..7400).contains(&moved), "a third of 20000 keys moves, not {moved}");
    }
}
