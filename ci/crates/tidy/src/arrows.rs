//! Which room may use which.
//!
//! The table below is the map of the house: for each crate, the crates of ours that it may depend
//! on directly. Dependencies of tests do not count. A crate that is not in the table does not
//! belong to the house yet, and a crate of `ci` may use every room but is used by none.

use cargo_metadata::{DependencyKind, Metadata, Package};

use crate::Complaint;

/// A crate and the crates that it may use.
type Row = (&'static str, &'static [&'static str]);

/// The rooms, from the ground up.
const ROOMS: &[Row] = &[
    ("memkv-poller", &[]),
    ("memkv-dma", &[]),
    ("memkv-wire", &[]),
    ("memkv-admin-api", &[]),
    ("memkv-block", &["memkv-poller", "memkv-dma"]),
    ("memkv-nvme", &["memkv-poller", "memkv-dma", "memkv-block"]),
    ("memkv-net", &["memkv-poller", "memkv-dma"]),
    ("memkv-sim", &["memkv-poller", "memkv-dma", "memkv-block", "memkv-net"]),
    ("memkv-journal", &["memkv-poller", "memkv-dma", "memkv-block"]),
    ("memkv-store", &["memkv-poller", "memkv-dma", "memkv-block", "memkv-journal"]),
    (
        "memkv-session",
        &[
            "memkv-poller",
            "memkv-dma",
            "memkv-block",
            "memkv-net",
            "memkv-wire",
            "memkv-store",
            "memkv-journal",
        ],
    ),
    (
        "memkv-node",
        &[
            "memkv-poller",
            "memkv-dma",
            "memkv-block",
            "memkv-nvme",
            "memkv-net",
            "memkv-wire",
            "memkv-store",
            "memkv-journal",
            "memkv-session",
            "memkv-admin-api",
            "memkv-admin-http",
            "memkv-client",
            "memkv-workload",
        ],
    ),
    ("memkv-admin-http", &["memkv-admin-api"]),
    ("memkv-client", &["memkv-wire", "memkv-net", "memkv-dma", "memkv-poller"]),
    ("memkv-workload", &["memkv-client", "memkv-wire"]),
    ("memkv-python", &["memkv-client"]),
    ("memkv-capi", &["memkv-client"]),
    ("memkv-preload", &["memkv-client"]),
    ("memkv-nixl", &["memkv-client"]),
    ("memkv-kv-store", &["memkv-client"]),
    ("memkv-kvbm", &["memkv-client"]),
    ("memkv-ctl", &["memkv-admin-api", "memkv-workload", "memkv-client", "memkv-wire"]),
];

/// Crates of the tests and benches: they may use every room.
const CI: &[&str] = &[
    "memkv-ci-tidy",
    "memkv-ci-sim",
    "memkv-ci-crash",
    "memkv-ci-bench",
    "memkv-ci-fuzz",
    "memkv-ci-vm",
];

/// Arrows that are not in the table, and crates that the table does not know.
#[must_use]
pub fn complaints(workspace: &Metadata) -> Vec<Complaint> {
    let packages = workspace.workspace_packages();
    let ours: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    packages.iter().flat_map(|package| package_complaints(package, &ours)).collect()
}

fn package_complaints(package: &Package, ours: &[&str]) -> Vec<Complaint> {
    let uses = package
        .dependencies
        .iter()
        .filter(|dependency| dependency.kind != DependencyKind::Development)
        .map(|dependency| dependency.name.as_str())
        .filter(|name| ours.contains(name));
    wrong_arrows(package.name.as_str(), uses)
        .into_iter()
        .map(|what| Complaint {
            path: package.manifest_path.clone().into_std_path_buf(),
            line: 0,
            what,
        })
        .collect()
}

/// What is wrong with a crate of ours that uses `uses`, crates of ours too.
fn wrong_arrows<'a>(name: &str, uses: impl Iterator<Item = &'a str>) -> Vec<String> {
    let allowed: &[&str] = match ROOMS.iter().find(|(room, _)| *room == name) {
        Some((_, allowed)) => allowed,
        None if CI.contains(&name) => {
            return uses
                .filter(|used| CI.contains(used))
                .map(|used| format!("{name} uses {used}: crates of ci use rooms, not each other"))
                .collect();
        }
        None => return vec![format!("{name} is not in the table of arrows: give it its place")],
    };
    uses.filter(|used| !allowed.contains(used))
        .map(|used| format!("{name} may not use {used}: that arrow is not in the house"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowed_arrows_pass() {
        assert!(wrong_arrows("memkv-journal", ["memkv-block", "memkv-dma"].into_iter()).is_empty());
        assert!(wrong_arrows("memkv-ci-sim", ["memkv-sim", "memkv-store"].into_iter()).is_empty());
    }

    #[test]
    fn arrows_that_point_back_are_named() {
        let wrong = wrong_arrows("memkv-journal", ["memkv-block", "memkv-store"].into_iter());
        assert_eq!(wrong.len(), 1);
        assert!(wrong[0].contains("memkv-store"), "{wrong:?}");
        assert_eq!(wrong_arrows("memkv-wire", ["memkv-poller"].into_iter()).len(), 1);
        assert_eq!(wrong_arrows("memkv-ci-sim", ["memkv-ci-tidy"].into_iter()).len(), 1);
    }

    #[test]
    fn a_crate_without_a_place_is_named() {
        assert_eq!(wrong_arrows("memkv-attic", [].into_iter()).len(), 1);
    }

    #[test]
    fn the_table_itself_has_no_circle() {
        fn depth(name: &str, path: &mut Vec<String>) -> usize {
            assert!(!path.iter().any(|seen| seen == name), "a circle: {path:?} {name}");
            path.push(name.to_owned());
            let (_, uses) = ROOMS.iter().find(|(room, _)| *room == name).expect("a known room");
            let deepest = uses.iter().map(|used| depth(used, path)).max().unwrap_or(0);
            path.pop();
            deepest + 1
        }
        let deepest = ROOMS.iter().map(|(room, _)| depth(room, &mut Vec::new())).max();
        assert!(deepest.is_some_and(|deepest| deepest > 3));
    }
}
