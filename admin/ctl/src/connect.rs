//! From options to a client: the configuration's own chain, with the options in the last place.

use crate::cli::Global;
use crate::error::CtlError;
use crate::progress;
use memkv_client::{Client, Config, ConfigError};
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// The client configuration: the file, then variables, then the options. The options take the place
/// of the variables they override, so one set of checks holds for all.
pub fn config(
    global: &Global,
    connections: Option<usize>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Config, CtlError> {
    let file = global
        .config
        .clone()
        .or_else(|| variable("MEMKV_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from));
    let servers = (!global.server.is_empty()).then(|| global.server.join(","));
    let overlaid = |name: &str| match name {
        "MEMKV_SERVERS" => servers.clone().or_else(|| variable(name)),
        "MEMKV_NAMESPACE" => global.namespace.clone().or_else(|| variable(name)),
        "MEMKV_NUM_CONNECTIONS" => connections.map(|n| n.to_string()).or_else(|| variable(name)),
        _ => variable(name),
    };
    let Some(path) = file else { return Ok(Config::from_parts(None, overlaid)?) };
    let text = fs::read_to_string(&path)
        .map_err(|source| ConfigError::Read { path: path.clone(), source })?;
    Ok(Config::from_parts(Some((&path, &text)), overlaid)?)
}

/// The configuration of this process.
pub fn own_config(global: &Global, connections: Option<usize>) -> Result<Config, CtlError> {
    config(global, connections, |name| std::env::var(name).ok())
}

/// How often a server that does not answer yet is asked.
const AGAIN: Duration = Duration::from_millis(200);

/// Waits until a server of the client answers. A replay or a bench of servers that are not there would
/// end at once, with nothing but failures.
///
/// # Errors
/// What the first server said last, when none answered in time or all refuse.
pub fn wait_for_servers(
    client: &Client,
    servers: &[String],
    patience: Duration,
) -> Result<(), CtlError> {
    let until = Instant::now() + patience;
    let spinner = progress::spinner();
    spinner.set_message(format!("waiting for {}", servers.join(", ")));
    loop {
        let mut last = None;
        let mut lost = true;
        for (_, answer) in client.server_stats() {
            match answer {
                Ok(_) => return Ok(()),
                Err(error) => {
                    lost &= error.is_server_lost();
                    last = last.or(Some(error));
                }
            }
        }
        let now = Instant::now();
        if let Some(error) = last.filter(|_| !lost || now >= until) {
            return Err(error.into());
        }
        thread::sleep(AGAIN.min(until.saturating_duration_since(now)));
    }
}

/// A client, and the servers it talks to.
pub fn client(
    global: &Global,
    connections: Option<usize>,
) -> Result<(Client, Vec<String>), CtlError> {
    let config = own_config(global, connections)?;
    let servers = server_names(&config);
    Ok((Client::new(config)?, servers))
}

/// The servers without their weights.
pub fn server_names(config: &Config) -> Vec<String> {
    let bare = |entry: &String| entry.split('*').next().unwrap_or_default().to_owned();
    config.servers.iter().map(bare).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Exit;

    #[test]
    fn options_come_last() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("client.yaml");
        fs::write(&path, "servers: [127.0.0.1:1]\nnamespace: file\nnum_connections: 7\n")
            .expect("room for a line");
        let variable = |name: &str| match name {
            "MEMKV_CONFIG" => path.to_str().map(str::to_owned),
            "MEMKV_SERVERS" => Some("127.0.0.1:2".to_owned()),
            _ => None,
        };
        let got = config(&Global::default(), None, variable).expect("all good");
        assert_eq!(got.servers, ["127.0.0.1:2"]);
        assert_eq!((got.namespace.as_str(), got.num_connections), ("file", 7));

        let server = vec!["127.0.0.1:3*2".to_owned(), "127.0.0.1:4".to_owned()];
        let global = Global { server, namespace: Some("option".into()), ..Global::default() };
        let got = config(&global, Some(9), variable).expect("all good");
        assert_eq!(server_names(&got), ["127.0.0.1:3", "127.0.0.1:4"]);
        assert_eq!((got.namespace.as_str(), got.num_connections), ("option", 9));
    }

    #[test]
    fn a_wrong_configuration_is_a_usage_error_that_names_it() {
        let missing = Global { config: Some("/no/such/file.yaml".into()), ..Global::default() };
        let distant = Global { server: vec!["10.0.0.1:1".into()], ..Global::default() };
        for (global, named) in [(missing, "/no/such/file.yaml"), (distant, "10.0.0.1:1")] {
            let error = config(&global, None, |_| None).expect_err("it cannot be used");
            assert_eq!(error.exit(), Exit::Usage);
            assert!(error.story().contains(named), "{}", error.story());
        }
    }
}
