//! On which line a key stands.
//!
//! The YAML tree carries no positions, but the parser's errors do: an error raised while it hands
//! over a key is given that key's line and column. So a problem is located by parsing once more,
//! walking down the key's path and raising an error on arrival. That costs a parse per problem,
//! which is nothing beside a person reading it.

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Into a mapping.
    Key(String),
    /// Into a list.
    Index(usize),
}

/// Line and column, from 1, of the key (or list item) at the end of the path. None when it does not
/// stand in the text, as with a key that is missing.
pub fn locate(text: &str, path: &[Step]) -> Option<(usize, usize)> {
    if path.is_empty() {
        return None;
    }
    let error = Walk(path).deserialize(serde_yaml::Deserializer::from_str(text)).err()?;
    // The parser puts the path in front of the message.
    if !error.to_string().contains(ARRIVED) {
        return None;
    }
    error.location().map(|location| (location.line(), location.column()))
}

const ARRIVED: &str = "arrived at the end of the path";

/// Walks down to the end of the path and fails there.
struct Walk<'p>(&'p [Step]);

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the path to go on")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((Step::Key(wanted), rest)) = self.0.split_first() else {
            return Err(A::Error::custom(ARRIVED));
        };
        while let Some(here) = map.next_key_seed(Key { wanted, last: rest.is_empty() })? {
            if here {
                return map.next_value_seed(Walk(rest));
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        let Some((Step::Index(wanted), rest)) = self.0.split_first() else {
            return Err(A::Error::custom(ARRIVED));
        };
        for _ in 0..*wanted {
            if sequence.next_element::<IgnoredAny>()?.is_none() {
                return Ok(());
            }
        }
        sequence.next_element_seed(Walk(rest)).map(|_| ())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        self.scalar()
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.scalar()
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.scalar()
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.scalar()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.scalar()
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.scalar()
    }
}

impl Walk<'_> {
    fn scalar<E: Error>(self) -> Result<(), E> {
        if self.0.is_empty() { Err(E::custom(ARRIVED)) } else { Ok(()) }
    }
}

/// Compares a key with the wanted one; fails on arrival at the path's last key.
struct Key<'p> {
    wanted: &'p str,
    last: bool,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<bool, E> {
        match key == self.wanted {
            true if self.last => Err(E::custom(ARRIVED)),
            same => Ok(same),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# comment\nnetwork:\n  address: 1\nstorage:\n  drives:\n    - media: /a\n      \
                        max_size: 3\n    - media: /b\n      max_sise: 4\nlog: {format: human, levle: x}\n";

    fn key(name: &str) -> Step {
        Step::Key(name.to_owned())
    }

    #[test]
    fn keys_are_found_where_they_stand() {
        let drives = [key("storage"), key("drives")];
        let in_drive = |i, name| [&drives[..], &[Step::Index(i), key(name)]].concat();
        let table = [
            (vec![key("network")], Some((2, 1))),
            (vec![key("network"), key("address")], Some((3, 3))),
            (drives.to_vec(), Some((5, 3))),
            (in_drive(0, "max_size"), Some((7, 7))),
            (in_drive(1, "max_sise"), Some((9, 7))),
            ([&drives[..], &[Step::Index(1)]].concat(), Some((8, 7))),
            (vec![key("log"), key("levle")], Some((10, 22))),
            (vec![key("absent")], None),
            (vec![key("network"), key("auth_key")], None),
            (in_drive(5, "media"), None),
            (vec![], None),
        ];
        for (path, expected) in table {
            assert_eq!(locate(TEXT, &path), expected, "{path:?}");
        }
    }

    #[test]
    fn no_text_has_no_lines() {
        assert_eq!(locate("", &[key("a")]), None);
        assert_eq!(locate("a: [", &[key("b")]), None);
    }
}
