//! Credits: the right to send payload.
//!
//! One credit is the right to send one inline Put frame (at most 256 KiB of payload). Connect
//! grants them, a Put frame takes one, its reply returns it. Both sides keep the same account: the
//! client so as never to send without a credit, the server to notice one that does.

/// Credits of one connection: never below zero, never above what was granted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CreditAccount {
    granted: u32,
    available: u32,
}

/// The other side, or this one, broke the rule of credits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CreditError {
    /// More taken than there are. On the client: wait. On the server: the client cheats.
    #[error("{wanted} credits wanted, {available} available")]
    Exhausted {
        /// Credits asked for.
        wanted: u32,
        /// Credits left.
        available: u32,
    },
    /// More returned than were taken.
    #[error("{returned} credits returned, but only {outstanding} are outstanding")]
    Overpaid {
        /// Credits that came back.
        returned: u32,
        /// Credits that were out.
        outstanding: u32,
    },
}

impl CreditAccount {
    /// An account with `granted` credits, all available.
    pub const fn new(granted: u32) -> CreditAccount {
        CreditAccount { granted, available: granted }
    }

    /// Takes `count` credits, all or none.
    ///
    /// # Errors
    /// [`CreditError::Exhausted`]; the account is unchanged.
    pub fn take(&mut self, count: u32) -> Result<(), CreditError> {
        let wanted = count;
        let available = self.available;
        self.available =
            available.checked_sub(count).ok_or(CreditError::Exhausted { wanted, available })?;
        Ok(())
    }

    /// Puts `count` credits back.
    ///
    /// # Errors
    /// [`CreditError::Overpaid`]; the account is unchanged.
    pub fn put_back(&mut self, count: u32) -> Result<(), CreditError> {
        let outstanding = self.outstanding();
        if count > outstanding {
            return Err(CreditError::Overpaid { returned: count, outstanding });
        }
        self.available += count;
        Ok(())
    }

    /// Credits that can be taken now.
    pub const fn available(&self) -> u32 {
        self.available
    }

    /// Credits that were taken and not yet put back.
    pub const fn outstanding(&self) -> u32 {
        self.granted - self.available
    }

    /// Credits granted at Connect.
    pub const fn granted(&self) -> u32 {
        self.granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        /// Against a model in wide signed numbers, whatever is asked in whatever order.
        #[test]
        fn the_account_balances(
            granted in any::<u32>(),
            moves in vec((any::<bool>(), any::<u32>()), 0..50),
        ) {
            let mut account = CreditAccount::new(granted);
            let mut available = i64::from(granted);
            for (take, count) in moves {
                let count = count >> (count % 32);
                let wide = i64::from(count);
                let before = account;
                let done = if take { account.take(count) } else { account.put_back(count) };
                let after = if take { available - wide } else { available + wide };
                if (0..=i64::from(granted)).contains(&after) {
                    prop_assert_eq!(done, Ok(()));
                    available = after;
                } else {
                    prop_assert!(done.is_err());
                    prop_assert_eq!(account, before);
                }
                prop_assert_eq!(i64::from(account.available()), available);
                prop_assert_eq!(account.available() + account.outstanding(), account.granted());
            }
        }
    }

    #[test]
    fn errors_name_both_numbers() {
        let mut account = CreditAccount::new(2);
        assert_eq!(account.take(3), Err(CreditError::Exhausted { wanted: 3, available: 2 }));
        assert_eq!(account.take(1), Ok(()));
        assert_eq!(account.put_back(2), Err(CreditError::Overpaid { returned: 2, outstanding: 1 }));
    }
}
