//! `deploy/launch-dynamo-memkv.sh`: what it finds out before it starts anything.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

/// Runs it with a plug-in and a folder of its own, and these servers.
fn check(folder: &Path, servers: &str) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/launch-dynamo-memkv.sh");
    let plugin = folder.join("some.so");
    std::fs::write(&plugin, "").expect("a file");
    let mut command = Command::new(script);
    command.arg("--plugin").arg(plugin).arg("--nixl").arg(folder);
    for variable in ["MEMKV_CONFIG", "MEMKV_SERVERS", "NIXL_PLUGIN_DIR"] {
        command.env_remove(variable);
    }
    command.args(["--servers", servers, "--check"]).output().expect("it runs")
}

#[test]
fn servers_are_asked_for_as_a_client_reads_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let own = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut servers = own.local_addr().expect("an address").to_string();
    // Not every machine has IPv6.
    let other = TcpListener::bind("[::1]:0").ok();
    if let Some(address) = other.as_ref().and_then(|other| other.local_addr().ok()) {
        servers = format!("{servers}*3, {address}*2 ");
    }
    let checked = check(folder.path(), &servers);
    assert!(checked.status.success(), "{servers}: {checked:?}");
    assert!(folder.path().join("libplugin_MEMKV.so").is_symlink());

    let gone = own.local_addr().expect("an address").to_string();
    drop((own, other));
    // The last two are of documents' addresses, where nobody is.
    for (servers, named) in
        [(&*gone, &*gone), ("192.0.2.1", "192.0.2.1:9900"), ("[2001:db8::1]", "[2001:db8::1]:9900")]
    {
        let checked = check(folder.path(), servers);
        assert_eq!(checked.status.code(), Some(3), "{servers}: {checked:?}");
        let said = String::from_utf8_lossy(&checked.stderr).into_owned();
        assert!(said.contains(&format!("nobody answers at {named};")), "{servers}: {said}");
    }
}
