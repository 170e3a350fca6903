//! A node one of whose drives is missing, and comes back.

mod common;

use common::{Wire, try_node_as};
use memkv_admin_api::{DriveState, HealthStatus, NodeAdmin};
use memkv_node::node::Node;
use memkv_wire::{PutMode, Status};

fn start(dir: &std::path::Path, drives: &[&str], degraded: bool) -> Result<Node, String> {
    let rows: String = drives
        .iter()
        .map(|name| format!("    - {{media: {}/{name}, max_size: 128 MiB}}\n", dir.display()))
        .collect();
    let yaml = format!("memory: {{max_size: 64 MiB}}\nstorage:\n  mode: file\n  drives:\n{rows}");
    try_node_as(&yaml, degraded).map_err(|error| memkv_node::serve::chain(&error))
}

#[test]
fn a_missing_drive_is_given_up_on_demand_and_left_out_when_it_is_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let node = start(dir.path(), &["a", "b"], false).expect("new drives");
    let mut wire = Wire::connect(&node);
    let keys: Vec<[u8; 2]> = (0..40u8).map(|i| [b'k', i]).collect();
    for key in &keys {
        assert_eq!(wire.put(key, &[key[1]; 5_000], PutMode::Absent).status, Status::Ok);
    }
    node.stop().expect("an orderly stop");

    let refused = start(dir.path(), &["a"], false).err().expect("b is missing");
    assert!(refused.contains("1 of the node's 2 drives are missing"), "{refused}");
    assert!(refused.contains("--degraded"), "{refused}");
    let node = start(dir.path(), &["a", "b"], false).expect("nothing was changed");
    node.stop().expect("an orderly stop");

    let node = start(dir.path(), &["a"], true).expect("on demand");
    let mut wire = Wire::connect(&node);
    let here: Vec<_> =
        keys.iter().filter(|key| wire.get(&key[..]).0.status == Status::Ok).collect();
    assert!(!here.is_empty() && here.len() < keys.len(), "{} are on a", here.len());
    for key in &keys {
        wire.delete(&key[..], 0);
    }
    assert_eq!(node.admin().health().status, HealthStatus::Healthy);
    node.stop().expect("an orderly stop");

    // What was deleted meanwhile does not come back with b.
    let node = start(dir.path(), &["b", "a"], false).expect("b is of no account");
    let status = node.admin().status();
    let states: Vec<_> = status.drives.iter().map(|drive| drive.state).collect();
    assert_eq!(states, [DriveState::Online, DriveState::Offline]);
    assert!(status.drives[0].path.ends_with("/a") && status.drives[1].path.ends_with("/b"));
    let reason = status.drives[1].offline_reason.as_deref().expect("a reason");
    assert!(reason.contains("readmit"), "{reason}");
    assert_eq!(node.admin().health().status, HealthStatus::Degraded);
    let mut wire = Wire::connect(&node);
    for key in &keys {
        assert_eq!(wire.get(&key[..]).0.status, Status::NotFound);
        assert_eq!(wire.put(&key[..], b"new", PutMode::Absent).status, Status::Ok);
    }
    node.stop().expect("an orderly stop");
}
