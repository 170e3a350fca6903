//! The shared key and what is derived from it.
//!
//! A [`SharedKey`] is never used on a frame itself. HKDF-SHA256 (RFC 5869) makes one key per
//! direction from it: the *connect keys* for the two Connect frames, which depend on the shared
//! key and its id only, and the *session keys* for all frames after, which depend on both nonces as
//! well, so that no frame of one connection is valid on another.

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroize;

use crate::Side;

/// 256 secret bits that a server and its clients share. Wiped when dropped, hidden in `Debug`.
#[derive(Clone)]
pub struct SharedKey([u8; 32]);

/// Why a text is not a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyError {
    /// A key is 32 bytes: 64 hexadecimal digits.
    #[error("a key has 64 hexadecimal digits, this one has {got} characters")]
    Length {
        /// Bytes of the text.
        got: usize,
    },
    /// A character is no hexadecimal digit.
    #[error("the character at position {at} of the key is no hexadecimal digit")]
    Digit {
        /// Position from 0.
        at: usize,
    },
}

impl SharedKey {
    /// A key of raw bytes, for instance fresh from the kernel's generator.
    pub const fn from_bytes(bytes: [u8; 32]) -> SharedKey {
        SharedKey(bytes)
    }

    /// Reads 64 hexadecimal digits, either case.
    ///
    /// # Errors
    /// [`KeyError`] names the place of the fault and never the text.
    pub fn from_hex(text: &str) -> Result<SharedKey, KeyError> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(KeyError::Length { got: digits.len() });
        }
        let digit = |at: usize| {
            char::from(digits[at]).to_digit(16).map(|d| d as u8).ok_or(KeyError::Digit { at })
        };
        let mut key = SharedKey([0; 32]);
        for (index, byte) in key.0.iter_mut().enumerate() {
            *byte = digit(2 * index)? << 4 | digit(2 * index + 1)?;
        }
        Ok(key)
    }

    /// The key that follows from a secret kept elsewhere: the same secret gives the same key, and
    /// the key does not give the secret away.
    pub fn from_secret(secret: &[u8; 32]) -> SharedKey {
        SharedKey(SharedKey(*secret).derive(b"memkv auth key", &[b"from a secret v1"]))
    }

    /// 64 hexadecimal digits, for a configuration. Whoever reads them has the key.
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// HKDF-SHA256 with this key as input keying material; `info` is a list of parts.
    fn derive(&self, salt: &[u8], info: &[&[u8]]) -> [u8; 32] {
        let mut okm = [0; 32];
        Hkdf::<Sha256>::new(Some(salt), &self.0)
            .expand_multi_info(info, &mut okm)
            .expect("32 bytes are within HKDF's limit of 8160");
        okm
    }
}

/// In a time that says nothing about where two keys differ.
impl PartialEq for SharedKey {
    fn eq(&self, other: &SharedKey) -> bool {
        self.0.iter().zip(&other.0).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }
}

impl Eq for SharedKey {}

impl Drop for SharedKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SharedKey(..)")
    }
}

/// The development key that both ends use on loopback when no key is configured. It is public:
/// whoever can open a socket on this host can use it, so a server warns when it does and refuses
/// to start with it on any other address.
pub fn loopback_key() -> SharedKey {
    SharedKey(SharedKey([0; 32]).derive(b"memkv loopback", &[b"development key v1"]))
}

/// The key of the Connect frame or its reply, for frames sent by `sender`.
pub(crate) fn connect_key(shared: &SharedKey, key_id: u32, sender: Side) -> [u8; 32] {
    shared.derive(b"memkv connect v1", &[&key_id.to_le_bytes(), &[sender.direction()]])
}

/// The key of every later frame of one connection, for frames sent by `sender`.
pub(crate) fn session_key(
    shared: &SharedKey,
    key_id: u32,
    version: u8,
    nonces: (&[u8; 32], &[u8; 32]),
    sender: Side,
) -> [u8; 32] {
    let mut salt = [0; 64];
    salt[..32].copy_from_slice(nonces.0);
    salt[32..].copy_from_slice(nonces.1);
    let info: [&[u8]; 4] =
        [b"memkv session", &[version], &key_id.to_le_bytes(), &[sender.direction()]];
    shared.derive(&salt, &info)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "000102030405060708090A0B0C0D0E0F101112131415161718191a1b1c1d1e1f";

    #[test]
    fn a_key_from_a_secret_is_steady_and_its_own() {
        let key = |byte| SharedKey::from_secret(&[byte; 32]).to_hex();
        assert_eq!(key(1), key(1));
        assert_ne!(key(1), key(2));
        assert_ne!(key(1), SharedKey::from_bytes([1; 32]).to_hex(), "not the secret itself");
        let again = SharedKey::from_hex(&key(1)).expect("its own digits").to_hex();
        assert_eq!(again, key(1));
    }

    #[test]
    fn keys_are_equal_when_every_byte_is() {
        let key = SharedKey::from_bytes([7; 32]);
        assert_eq!(key, key.clone());
        for at in 0..32 {
            let mut bytes = [7; 32];
            bytes[at] ^= 0x80;
            assert_ne!(key, SharedKey::from_bytes(bytes), "byte {at}");
        }
    }

    #[test]
    fn hex_of_either_case_is_read() {
        let key = SharedKey::from_hex(HEX).expect("a good key");
        assert_eq!(key.0, std::array::from_fn(|index| index as u8));
    }

    #[test]
    fn faults_of_a_key_are_named_by_place() {
        assert_eq!(SharedKey::from_hex("").unwrap_err(), KeyError::Length { got: 0 });
        assert_eq!(SharedKey::from_hex(&HEX[1..]).unwrap_err(), KeyError::Length { got: 63 });
        let bad = HEX.replace("1a", "1g");
        assert_eq!(SharedKey::from_hex(&bad).unwrap_err(), KeyError::Digit { at: 53 });
        // 64 bytes, but not 64 characters: no panic on a character boundary.
        let bad = format!("{}é", &HEX[..62]);
        assert_eq!(SharedKey::from_hex(&bad).unwrap_err(), KeyError::Digit { at: 62 });
    }

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", SharedKey([7; 32])), "SharedKey(..)");
    }

    #[test]
    fn every_input_changes_the_key() {
        let shared = SharedKey([1; 32]);
        let nonces = ([2; 32], [3; 32]);
        let session =
            |shared, id, version, a, b, side| session_key(shared, id, version, (a, b), side);
        let (a, b) = (&nonces.0, &nonces.1);
        let other = SharedKey([9; 32]);
        let all = [
            session(&shared, 7, 1, a, b, Side::Client),
            session(&shared, 7, 1, a, b, Side::Server),
            session(&shared, 8, 1, a, b, Side::Client),
            session(&shared, 7, 2, a, b, Side::Client),
            session(&shared, 7, 1, b, a, Side::Client),
            session(&other, 7, 1, a, b, Side::Client),
            connect_key(&shared, 7, Side::Client),
            connect_key(&shared, 7, Side::Server),
            connect_key(&shared, 8, Side::Client),
            connect_key(&other, 7, Side::Client),
        ];
        for (index, key) in all.iter().enumerate() {
            assert!(all[..index].iter().all(|other| other != key));
        }
    }
}
