//! `memkvctl ls`: which namespaces a server has, and which keys one of them has.

use std::collections::BTreeMap;

use memkv_admin_api::size::short_size;
use memkv_admin_api::{KeyEntry, KeysPage, NamespaceEntry, NamespacesPage, PAGE_MAX};
use serde::Serialize;

use crate::blocks::say;
use crate::cli::{Global, ListArgs};
use crate::connect;
use crate::error::{CtlError, Exit};
use crate::status::{admin_address, fetch};
use crate::table::plain_table;

/// What one server holds.
#[derive(Debug, Default, Serialize)]
struct Listing {
    server: String,
    /// Its namespaces, when no namespace was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    namespaces: Option<Vec<NamespaceEntry>>,
    /// The keys of the namespace that was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    keys: Option<Vec<KeyEntry>>,
    /// Whether there are more keys than were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    more: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub fn run(global: &Global, args: &ListArgs) -> Result<Exit, CtlError> {
    let servers = match global.server.as_slice() {
        [] => connect::server_names(&connect::own_config(global, None)?),
        named => named.to_vec(),
    };
    let mut first = None;
    let mut listings = Vec::with_capacity(servers.len());
    for server in servers {
        let listing = match list(&server, global, args) {
            Ok(listing) => listing,
            Err(error) => {
                let told = Some(error.story());
                first.get_or_insert(error);
                Listing { error: told, ..Listing::default() }
            }
        };
        listings.push(Listing { server, ..listing });
    }
    if global.json {
        say(&serde_json::json!(listings).to_string())?;
    } else {
        say(render(&listings).trim_end())?;
    }
    first.map_or(Ok(Exit::Done), Err)
}

fn list(server: &str, global: &Global, args: &ListArgs) -> Result<Listing, CtlError> {
    let admin =
        admin_address(server).ok_or_else(|| CtlError::BadServer { server: server.to_owned() })?;
    // The option of every command names a namespace as well.
    match args.namespace.as_ref().or(global.namespace.as_ref()) {
        None => {
            let namespaces = namespaces(&admin, args)?;
            Ok(Listing { namespaces: Some(namespaces), ..Listing::default() })
        }
        Some(namespace) => {
            let (keys, more) = keys(&admin, namespace, args)?;
            Ok(Listing { keys: Some(keys), more: Some(more), ..Listing::default() })
        }
    }
}

fn namespaces(admin: &str, args: &ListArgs) -> Result<Vec<NamespaceEntry>, CtlError> {
    let mut sums: BTreeMap<(String, String), (u64, u64)> = BTreeMap::new();
    let mut after = Some(0);
    while let Some(from) = after {
        let path = format!("/v1/namespaces?after={from}");
        let page: NamespacesPage = fetch(admin, &path, &[200], args.timeout)?;
        for entry in page.namespaces {
            let (blocks, bytes) = sums.entry((entry.tenant, entry.namespace)).or_default();
            *blocks += entry.blocks;
            *bytes += entry.bytes;
        }
        after = page.next;
    }
    let wanted = |tenant: &String| args.tenant.as_ref().is_none_or(|wanted| wanted == tenant);
    let sums = sums.into_iter().filter(|((tenant, _), _)| wanted(tenant));
    let entry = |((tenant, namespace), (blocks, bytes))| NamespaceEntry {
        tenant,
        namespace,
        blocks,
        bytes,
    };
    Ok(sums.map(entry).collect())
}

/// Keys up to the limit, sorted, and whether there are more.
fn keys(admin: &str, namespace: &str, args: &ListArgs) -> Result<(Vec<KeyEntry>, bool), CtlError> {
    let tenant = args.tenant.as_ref();
    let tenant = tenant.map(|tenant| format!("&tenant={}", encoded(tenant))).unwrap_or_default();
    let most = if args.limit == 0 { usize::MAX } else { args.limit };
    let mut keys: Vec<KeyEntry> = Vec::new();
    let mut after = Some(0);
    while let Some(from) = after.filter(|_| keys.len() < most) {
        let limit = (most - keys.len()).min(PAGE_MAX as usize);
        let namespace = encoded(namespace);
        let path = format!("/v1/keys?namespace={namespace}{tenant}&after={from}&limit={limit}");
        let page: KeysPage = fetch(admin, &path, &[200], args.timeout)?;
        keys.extend(page.keys);
        after = page.next;
    }
    // A page may end short of the last block and there be none behind it: then ask once more.
    let mut more = keys.len() > most;
    while let Some(from) = after.filter(|_| !more) {
        let namespace = encoded(namespace);
        let path = format!("/v1/keys?namespace={namespace}{tenant}&after={from}&limit=1");
        let page: KeysPage = fetch(admin, &path, &[200], args.timeout)?;
        more = !page.keys.is_empty();
        after = page.next;
    }
    keys.truncate(most);
    keys.sort_by(|a, b| (&a.tenant, &a.key).cmp(&(&b.tenant, &b.key)));
    Ok((keys, more))
}

/// Percent-encodes what is not unreserved (RFC 3986).
pub fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out += &format!("%{byte:02X}");
        }
    }
    out
}

fn render(listings: &[Listing]) -> String {
    let mut texts = Vec::new();
    for listing in listings {
        let mut text = String::new();
        if listings.len() > 1 || listing.error.is_some() {
            text += &format!("{}\n", listing.server);
        }
        if let Some(namespaces) = &listing.namespaces {
            let mut table = plain_table(&["tenant", "namespace", "blocks", "bytes"]);
            for entry in namespaces {
                table.add_row([
                    entry.tenant.clone(),
                    entry.namespace.clone(),
                    entry.blocks.to_string(),
                    short_size(entry.bytes),
                ]);
            }
            text += &table.trim_fmt();
        }
        if let Some(keys) = &listing.keys {
            let mut table = plain_table(&["tenant", "key", "bytes", "generation", "expires"]);
            for entry in keys {
                table.add_row([
                    entry.tenant.clone(),
                    entry.key.clone(),
                    entry.bytes.to_string(),
                    entry.generation.to_string(),
                    entry.expires.map(|at| at.to_string()).unwrap_or_default(),
                ]);
            }
            text += &table.trim_fmt();
            if listing.more == Some(true) {
                text += "\nand more; --limit 0 lists all";
            }
        }
        text += listing.error.as_deref().unwrap_or_default();
        texts.push(text);
    }
    texts.join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_encoded_for_a_query() {
        assert_eq!(encoded("llama-3.1_8b~"), "llama-3.1_8b~");
        assert_eq!(encoded("a b&c=ü/"), "a%20b%26c%3D%C3%BC%2F");
    }
}
