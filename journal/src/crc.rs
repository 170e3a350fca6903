//! CRC32C, the one checksum of the drive format (the iSCSI polynomial, RFC 3720 appendix B.4).

use crc_fast::{CrcAlgorithm, Digest, checksum};

/// CRC32C of `bytes`.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// CRC32C of bytes that come piece by piece.
pub(crate) struct Pieces(Digest);

impl Pieces {
    pub fn new() -> Pieces {
        Pieces(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }

    pub fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub fn crc(&self) -> u32 {
        self.0.finalize() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_polynomial_is_castagnoli() {
        // RFC 3720 B.4: 32 bytes of zeros, of ones, and ascending.
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xFF; 32]), 0x62A8_AB43);
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        let mut pieces = Pieces::new();
        pieces.add(b"1234");
        pieces.add(b"56789");
        assert_eq!(pieces.crc(), 0xE306_9283);
    }
}
