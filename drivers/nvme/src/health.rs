//! The health of a drive: the SMART log page, Base Specification 2.0, section 5.16.1.3.

use crate::command::LOG_HEALTH_BYTES;

/// What a drive says about its health.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Health {
    /// What is critical, as the drive's bits: 0 spare blocks, 1 temperature, 2 reliability, 3 read-only,
    /// 4 backup of volatile memory, 5 persistent memory.
    pub critical: u8,
    /// Degrees Celsius; none when the drive does not measure.
    pub temperature: Option<i16>,
    /// Spare blocks left, in percent.
    pub spare: u8,
    /// Below so many percent the drive warns.
    pub spare_threshold: u8,
    /// Life used up, in percent of what was estimated; may be more than 100.
    pub used: u8,
    /// Bytes read and written by hosts, to the next 512000.
    pub bytes_read: u128,
    /// See `bytes_read`.
    pub bytes_written: u128,
    /// Hours that it has been on.
    pub power_on_hours: u128,
    /// Times that it lost power without a shutdown.
    pub unsafe_shutdowns: u128,
    /// Errors of the medium that it could not correct.
    pub media_errors: u128,
}

/// The log counts thousands of blocks of 512 bytes.
const DATA_UNIT: u128 = 512_000;

/// Zero degrees Celsius in the log's kelvin.
const FREEZING: i16 = 273;

impl Health {
    pub(crate) fn parse(page: &[u8; LOG_HEALTH_BYTES]) -> Health {
        let wide =
            |at: usize| u128::from_le_bytes(page[at..at + 16].try_into().expect("sixteen bytes"));
        let kelvin = i16::try_from(u16::from_le_bytes([page[1], page[2]])).unwrap_or(i16::MAX);
        Health {
            critical: page[0],
            temperature: (kelvin > 0).then(|| kelvin - FREEZING),
            spare: page[3],
            spare_threshold: page[4],
            used: page[5],
            bytes_read: wide(32).saturating_mul(DATA_UNIT),
            bytes_written: wide(48).saturating_mul(DATA_UNIT),
            power_on_hours: wide(128),
            unsafe_shutdowns: wide(144),
            media_errors: wide(160),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_page_is_read_whatever_it_says() {
        let mut page = [0; LOG_HEALTH_BYTES];
        assert_eq!(Health::parse(&page).temperature, None);
        page[..6].copy_from_slice(&[4, 0x43, 0x01, 99, 10, 101]);
        page[32] = 2;
        page[48] = 3;
        page[144] = 7;
        page[161] = 1;
        let health = Health::parse(&page);
        assert_eq!((health.critical, health.temperature), (4, Some(50)));
        assert_eq!((health.spare, health.spare_threshold, health.used), (99, 10, 101));
        assert_eq!((health.bytes_read, health.bytes_written), (1_024_000, 1_536_000));
        assert_eq!((health.unsafe_shutdowns, health.media_errors), (7, 256));
        let worst = Health::parse(&[0xff; LOG_HEALTH_BYTES]);
        assert_eq!(worst.bytes_read, u128::MAX);
        assert_eq!(worst.temperature, Some(i16::MAX - FREEZING));
    }
}
