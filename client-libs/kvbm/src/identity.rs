//! Whose blocks these are: what decides over their bytes, beside the tokens that their hashes name.

use std::collections::BTreeMap;

use serde_json::Value;
use sha2::{Digest, Sha256};

/// What all ranks of one deployment have in common and another may not have: the model, and what else the
/// caller names (data type, weights, how many ranks there are). Two deployments with unequal identities
/// never find each other's blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    fields: BTreeMap<String, String>,
}

impl Identity {
    /// Of a model, by its name and revision or by a digest of its weights.
    pub fn new(model: impl Into<String>) -> Identity {
        let mut fields = BTreeMap::new();
        fields.insert("engine".to_owned(), "kvbm".to_owned());
        fields.insert("model".to_owned(), model.into());
        Identity { fields }
    }

    /// The same with one more fact.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<String>) -> Identity {
        self.fields.insert(name.into(), value.into());
        self
    }

    /// All of it: a JSON object, its fields in the order of their names.
    pub fn document(&self) -> Value {
        let field = |(name, value): (&String, &String)| (name.clone(), Value::from(value.as_str()));
        Value::Object(self.fields.iter().map(field).collect())
    }

    /// What its keys begin with: 16 hexadecimal digits.
    pub fn prefix(&self) -> String {
        self.digest(16)
    }

    /// The namespace of a deployment that was told none.
    pub fn default_namespace(&self) -> String {
        format!("kvbm-{}", self.digest(12))
    }

    fn digest(&self, digits: usize) -> String {
        digest(self.document().to_string().as_bytes(), digits)
    }
}

/// The first hexadecimal digits of the SHA-256 of a document.
pub(crate) fn digest(document: &[u8], digits: usize) -> String {
    let digest = Sha256::digest(document);
    let mut text: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    text.truncate(digits);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fact_counts_and_their_order_does_not() {
        let one = Identity::new("m").with("dtype", "bf16").with("ranks", "2");
        let other = Identity::new("m").with("ranks", "2").with("dtype", "bf16");
        assert_eq!(
            (one.prefix(), one.default_namespace()),
            (other.prefix(), other.default_namespace())
        );
        for unlike in [
            Identity::new("m"),
            Identity::new("m").with("dtype", "bf16").with("ranks", "4"),
            Identity::new("m2").with("dtype", "bf16").with("ranks", "2"),
        ] {
            assert_ne!(one.prefix(), unlike.prefix());
        }
    }

    #[test]
    fn the_prefix_of_an_identity_never_changes() {
        // Blocks of a running deployment are found by it.
        let identity = Identity::new("m").with("dtype", "bf16");
        let document = r#"{"dtype":"bf16","engine":"kvbm","model":"m"}"#;
        assert_eq!(identity.document().to_string(), document);
        assert_eq!(identity.prefix(), "5228fc763a451064");
    }
}
