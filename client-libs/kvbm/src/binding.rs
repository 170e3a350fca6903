//! What a namespace, and the blocks of a rank in it, are known to hold: written down by whoever comes first,
//! and compared by everybody else before the first block moves.
//!
//! A hash names tokens, and an identity the model, but neither names the layout of a block: with one layout's
//! bytes under another an engine would go on with garbage. So what is written down of a layout also names
//! the blocks: a note may be evicted before them, and who comes next and writes down another layout
//! finds none of theirs.

use kvbm_physical::layout::Layout;
use memkv_client::{Client, ClientError, PutMode, PutOptions};
use serde_json::{Value, json};

/// Where a namespace says whose it is; all plug-ins write it there.
pub(crate) const FINGERPRINT_KEY: &str = "memkv/fingerprint";
/// What a server is asked to keep such small entries for; it cuts this to its own limit.
const PIN_SECONDS: u32 = 7 * 24 * 3600;
/// How often somebody else may be faster before it is given up.
const ATTEMPTS: usize = 3;

/// Why a namespace, or the blocks in it, cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    /// They are another deployment's.
    #[error(
        "`{key}` in namespace `{namespace}` is another deployment's: it says {theirs}, and here it would be \
         {ours}; name another namespace, or none, and each deployment gets its own"
    )]
    Mismatch { namespace: String, key: String, ours: Value, theirs: String },
    /// Nothing can be said yet.
    #[error("`{key}` cannot be read or written")]
    Client {
        key: String,
        #[source]
        source: ClientError,
    },
    /// It comes and goes.
    #[error("`{key}` is neither there nor can it be stored")]
    Unsettled { key: String },
}

/// What decides over the meaning of a block's bytes, as far as its layout knows.
pub(crate) fn of_layout(layout: &dyn Layout) -> Value {
    let config = layout.config();
    json!({
        "layers": config.num_layers,
        "outer": config.outer_dim,
        "page": config.page_size,
        "inner": config.inner_dim,
        "dtype_bytes": config.dtype_width_bytes,
        "heads": config.num_heads,
        "order": layout.block_layout().name(),
    })
}

/// Writes `ours` under `key` unless there is something, which must then be equal. Answers what is written
/// there: it may be another text that says the same.
pub(crate) fn bind(client: &Client, key: &str, ours: &Value) -> Result<Vec<u8>, BindError> {
    let found = publish(client, key, &ours.to_string())?;
    let theirs: Option<Value> = serde_json::from_slice(&found).ok();
    if theirs.as_ref() == Some(ours) {
        return Ok(found);
    }
    Err(BindError::Mismatch {
        namespace: client.config().namespace.clone(),
        key: key.to_owned(),
        ours: ours.clone(),
        theirs: String::from_utf8_lossy(&found).into_owned(),
    })
}

/// What is written under `key`, if there is anything.
pub(crate) fn written(client: &Client, key: &str) -> Result<Option<Vec<u8>>, ClientError> {
    let mut found = Vec::new();
    let outcome = client.get(key.as_bytes(), &mut found)?;
    Ok(outcome.is_hit().then_some(found))
}

/// Puts `value` unless the key has one, and returns what the key has then.
fn publish(client: &Client, key: &str, value: &str) -> Result<Vec<u8>, BindError> {
    let failed = |source| BindError::Client { key: key.to_owned(), source };
    let options =
        PutOptions { mode: PutMode::Absent, pin_seconds: PIN_SECONDS, ..PutOptions::default() };
    for _ in 0..ATTEMPTS {
        if let Some(found) = written(client, key).map_err(failed)? {
            return Ok(found);
        }
        match client.put(key.as_bytes(), value.as_bytes(), &options) {
            // Present, or of another length: somebody was faster, and is read next.
            Ok(_) | Err(ClientError::Conflict { .. }) => (),
            Err(error) => return Err(failed(error)),
        }
    }
    Err(BindError::Unsettled { key: key.to_owned() })
}
