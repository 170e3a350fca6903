//! The configuration chain, without a process environment.

use super::*;

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

fn with(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let variable = |name: &str| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    let file = (!text.is_empty()).then_some((Path::new("client.yaml"), text));
    Config::from_parts(file, variable)
}

fn message(result: Result<Config, ConfigError>) -> String {
    result.expect_err("this configuration is wrong").to_string()
}

#[test]
fn nothing_at_all_finds_the_server_on_this_machine() {
    let config = with("", &[]).expect("the defaults are good");
    assert_eq!(config.servers, ["127.0.0.1:9900"]);
    assert_eq!((config.num_connections, config.transport), (4, Transport::Auto));
    assert!(config.auth_key.is_none());
    config.key().expect("the development key on loopback");
}

#[test]
fn variables_override_the_file() {
    let text = format!(
        "servers: [a:1, 'b:2*3']\nnamespace: ours\nauth_key: {KEY}\nkey_id: 7\n\
         transport: tcp\nnum_connections: 2\nrequest_timeout_ms: 5\n"
    );
    let config = with(&text, &[]).expect("good");
    assert_eq!(config.servers, ["a:1", "b:2*3"]);
    assert_eq!((config.key_id, config.num_connections, config.request_timeout_ms), (7, 2, 5));
    assert_eq!(config.transport, Transport::Tcp);
    let variables = [
        ("MEMKV_SERVERS", "c:3, d:4"),
        ("MEMKV_NUM_CONNECTIONS", "9"),
        ("MEMKV_NAMESPACE", "theirs"),
        ("MEMKV_TRANSPORT", "auto"),
        ("MEMKV_KEY_ID", ""),
    ];
    let config = with(&text, &variables).expect("good");
    assert_eq!(config.servers, ["c:3", "d:4"]);
    assert_eq!((config.num_connections, config.key_id), (9, 7));
    assert_eq!((&*config.namespace, config.transport), ("theirs", Transport::Auto));
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_known_one() {
    let text = message(with("server: [a:1]\n", &[]));
    assert_eq!(text, "client.yaml: unknown key `server`, did you mean `servers`?");
    let text = message(with("num_connection: 3\n", &[]));
    assert!(text.contains("did you mean `num_connections`?"), "{text}");
    let text = message(with("colour: blue\n", &[]));
    assert_eq!(text, "client.yaml: unknown key `colour`");
    assert!(matches!(with("- a\n- b\n", &[]), Err(ConfigError::Yaml { .. })));
    assert!(matches!(with("servers: 5\n", &[]), Err(ConfigError::Yaml { .. })));
    assert!(matches!(with("servers: [\n", &[]), Err(ConfigError::Yaml { .. })));
    with("# nothing but a comment\n", &[]).expect("an empty file is good");
}

#[test]
fn wrong_values_are_refused_by_name() {
    let text = message(with("", &[("MEMKV_NUM_CONNECTIONS", "many")]));
    assert_eq!(text, "MEMKV_NUM_CONNECTIONS cannot be `many`");
    let text = message(with("", &[("MEMKV_TRANSPORT", "pigeon")]));
    assert_eq!(text, "MEMKV_TRANSPORT cannot be `pigeon`");
    let text = message(with("transport: rdma\n", &[]));
    assert!(text.contains("TCP only"), "{text}");
    assert!(matches!(with("transport: pigeon\n", &[]), Err(ConfigError::Yaml { .. })));
    assert!(matches!(with("auth_key: beef\n", &[]), Err(ConfigError::Key { .. })));
    assert!(matches!(with("num_connections: 0\n", &[]), Err(ConfigError::Bounds { .. })));
    assert!(matches!(with("namespace: ''\n", &[]), Err(ConfigError::Bounds { .. })));
    assert!(matches!(with("servers: []\n", &[]), Err(ConfigError::NoServers)));
    assert!(matches!(with("servers: [a, a]\n", &[]), Err(ConfigError::Twice { .. })));
}

#[test]
fn a_server_elsewhere_needs_a_key() {
    let text = message(with("servers: ['10.0.0.1:9900']\n", &[]));
    assert!(text.starts_with("`10.0.0.1:9900` is not a loopback address"), "{text}");
    with("servers: ['10.0.0.1:9900']\n", &[("MEMKV_AUTH_KEY", KEY)]).expect("with a key");
    for local in ["localhost:1", "[::1]:1", "127.9.9.9", "'[::ffff:127.0.0.1]:3'"] {
        with(&format!("servers: [\"{}\"]\n", local.trim_matches('\'')), &[]).expect(local);
    }
}

#[test]
fn servers_are_parsed() {
    let parse = |entry: &str| Address::parse(entry).map(|a| (a.name, a.weight));
    let good = [
        ("Host:1", ("host:1", 1)),
        ("host", ("host:9900", 1)),
        ("host:1*20", ("host:1", 20)),
        ("host*20", ("host:9900", 20)),
        ("[::1]", ("[::1]:9900", 1)),
        ("[FE80::1]:7*2", ("[fe80::1]:7", 2)),
    ];
    for (entry, (name, weight)) in good {
        assert_eq!(parse(entry), Some((name.to_owned(), weight)), "{entry}");
    }
    let bad =
        ["", ":1", "a:b", "a:99999", "a:1*0", "a:1*-1", "a:1*x", "::1", "a b:1", "http://a:1"];
    for entry in bad {
        assert_eq!(parse(entry), None, "{entry}");
    }
}
