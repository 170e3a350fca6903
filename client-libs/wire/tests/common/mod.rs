//! What the tests of this room share: fixed keys, a pair of ends, hexadecimal.

#![allow(dead_code, reason = "each test uses a part of it")]

pub mod samples;

use memkv_wire::handshake::{connect_keys, session_keys};
use memkv_wire::{HEADER_LEN, Opener, Sealer, SharedKey, Side};

pub const KEY_ID: u32 = 7;
pub const CLIENT_NONCE: [u8; 32] = filled(0x20);
pub const SERVER_NONCE: [u8; 32] = filled(0x40);

/// `N` bytes that count up from `first`.
pub const fn filled<const N: usize>(first: u8) -> [u8; N] {
    let mut bytes = [0; N];
    let mut index = 0;
    while index < N {
        bytes[index] = first.wrapping_add(index as u8);
        index += 1;
    }
    bytes
}

/// The bytes 0, 1, … 31.
pub fn shared_key() -> SharedKey {
    SharedKey::from_bytes(filled(0))
}

/// Sealer and opener of one side, before or after Connect.
pub fn connecting(side: Side) -> (Sealer, Opener) {
    connect_keys(&shared_key(), KEY_ID, side)
}

pub fn connected(side: Side) -> (Sealer, Opener) {
    session_keys(&shared_key(), KEY_ID, 1, &CLIENT_NONCE, &SERVER_NONCE, side)
}

/// Header and the rest of a frame.
pub fn split(frame: &[u8]) -> (&[u8; HEADER_LEN], &[u8]) {
    frame.split_first_chunk().expect("a frame has a header")
}

pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads hexadecimal digits, ignoring white space.
pub fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_digit(16).expect("a hexadecimal digit") as u8)
        .collect();
    assert!(digits.len().is_multiple_of(2), "whole bytes");
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}
