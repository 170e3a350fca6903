//! `memkv://host:port[,host:port…]/namespace`.

use memkv_client::{Config, ConfigError};

/// Why a URI leads nowhere; the text says what to write instead.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UriError {
    /// No text, or none that begins as it should.
    #[error("write memkv://host:port[,host:port...]/namespace")]
    Scheme,
    /// Something that a later version may give a meaning.
    #[error("`{0}` has no meaning in this URI; all but servers and namespace is set by MEMKV_*")]
    Reserved(char),
    /// The environment, or the file that it names, makes no sense.
    #[error("the configuration of this process makes no sense")]
    Environment(#[from] ConfigError),
}

/// The configuration of the process, for the servers and the namespace that a URI names. Where it leaves one of
/// them out, the configuration has it.
pub(crate) fn config(
    uri: &str,
    configured: impl FnOnce() -> Result<Config, ConfigError>,
) -> Result<Config, UriError> {
    let rest = uri.strip_prefix("memkv://").ok_or(UriError::Scheme)?;
    if let Some(strange) = rest.chars().find(|c| "?#%@".contains(*c) || c.is_whitespace()) {
        return Err(UriError::Reserved(strange));
    }
    let (servers, namespace) = rest.split_once('/').unwrap_or((rest, ""));
    let namespace = namespace.trim_end_matches('/');
    let mut config = configured()?;
    if !servers.is_empty() {
        config.servers = servers.split(',').map(str::to_owned).collect();
    }
    if !namespace.is_empty() {
        config.namespace = namespace.to_owned();
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured() -> Result<Config, ConfigError> {
        let variable = |name: &str| match name {
            "MEMKV_SERVERS" => Some("one:1,two:2".to_owned()),
            "MEMKV_NAMESPACE" => Some("of the environment".to_owned()),
            "MEMKV_AUTH_KEY" => Some("ab".repeat(32)),
            "MEMKV_NUM_CONNECTIONS" => Some("2".to_owned()),
            _ => None,
        };
        Config::from_parts(None, variable)
    }

    #[test]
    fn servers_and_namespace_are_those_of_the_uri() {
        let config = config("memkv://a:1,b:2/llama//", configured).expect("a configuration");
        assert_eq!(config.servers, ["a:1", "b:2"]);
        assert_eq!(config.namespace, "llama");
        assert!(config.auth_key.is_some());
        assert_eq!(config.num_connections, 2);
    }

    #[test]
    fn what_it_leaves_out_is_configured() {
        for uri in ["memkv://a:1", "memkv://a:1/"] {
            assert_eq!(config(uri, configured).expect(uri).namespace, "of the environment");
        }
        let config = config("memkv:///llama", configured).expect("a configuration");
        assert_eq!(config.servers, ["one:1", "two:2"]);
        assert_eq!(config.namespace, "llama");
    }

    #[test]
    fn others_are_refused_with_what_to_write() {
        for uri in ["", "memkv:/a", "redis://a:1/n", "a:1/n"] {
            let error = config(uri, configured).expect_err(uri).to_string();
            assert!(error.contains("memkv://host:port"), "{uri}: {error}");
        }
        for (uri, strange) in [("memkv://a/n?x=1", "`?`"), ("memkv://key@a/n", "`@`")] {
            let error = config(uri, configured).expect_err(uri).to_string();
            assert!(error.contains(strange), "{uri}: {error}");
        }
    }
}
