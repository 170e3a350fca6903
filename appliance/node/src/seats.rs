//! Which cores reactors run on, where that matters: on a machine with several NUMA nodes, near the drives.
//!
//! Every reactor drives every drive, so none is far from all; but a read that goes to a drive of another
//! socket goes over the link between them, with its doorbell and its answer. So reactors are shared out
//! among the nodes by the drives that are attached there, the store's first, which drives journals, to where most
//! are. A `busy` reactor gets a core of its own, an `adaptive` one all cores of its node: others may want to
//! use them while it sleeps. On a machine with one node the system knows best.

use std::collections::BTreeMap;

use memkv_nvme::Sysfs;

/// Where a reactor runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seat {
    /// The NUMA node.
    pub node: u32,
    /// Cores of it, at least one.
    pub cores: Vec<usize>,
}

impl Seat {
    /// The core, if it is a single one.
    pub fn core(&self) -> Option<usize> {
        (self.cores.len() == 1).then(|| self.cores[0])
    }

    /// Binds the calling thread to it.
    #[cfg(target_os = "linux")]
    pub fn take(&self) {
        let mut set = nix::sched::CpuSet::new();
        let fit = self.cores.iter().try_for_each(|core| set.set(*core));
        let bound =
            fit.and_then(|()| nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set));
        if let Err(error) = bound {
            tracing::warn!(seat = ?self, %error, "a reactor cannot be bound to its cores");
        }
    }

    /// Elsewhere the system decides.
    #[cfg(not(target_os = "linux"))]
    pub fn take(&self) {}
}

/// The NUMA nodes of this machine with the cores that this process may use.
#[cfg(target_os = "linux")]
pub(crate) fn nodes(sysfs: &Sysfs) -> Vec<(u32, Vec<usize>)> {
    let allowed = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0));
    let may = |core: &usize| allowed.as_ref().is_ok_and(|set| set.is_set(*core).unwrap_or(false));
    let node = |node: u32| (node, sysfs.cores_of_node(node).into_iter().filter(may).collect());
    sysfs.nodes().into_iter().map(node).collect()
}

/// Elsewhere none are told.
#[cfg(not(target_os = "linux"))]
pub(crate) fn nodes(_sysfs: &Sysfs) -> Vec<(u32, Vec<usize>)> {
    Vec::new()
}

/// Seats for so many reactors, by the nodes of the drives; none where it does not matter.
pub(crate) fn assign(
    reactors: usize,
    busy: bool,
    drives: &[Option<u32>],
    nodes: &[(u32, Vec<usize>)],
) -> Vec<Option<Seat>> {
    let with_cores: Vec<&(u32, Vec<usize>)> =
        nodes.iter().filter(|(_, cores)| !cores.is_empty()).collect();
    let mut attached: BTreeMap<u32, usize> = BTreeMap::new();
    for node in drives.iter().flatten() {
        *attached.entry(*node).or_default() += 1;
    }
    let near = with_cores.iter().any(|(node, _)| attached.contains_key(node));
    if with_cores.len() < 2 || !near {
        return vec![None; reactors];
    }
    let mut seated = vec![0; with_cores.len()];
    let seat = |_| {
        // Who has most drives for each of its reactors is next, with a core left if anybody has one.
        let claim = |at: &usize| {
            let (node, cores) = with_cores[*at];
            let drives = attached.get(node).copied().unwrap_or(0);
            let has_core = seated[*at] < cores.len();
            (has_core, drives * 1_000_000 / (seated[*at] + 1), std::cmp::Reverse(seated[*at]))
        };
        let at = (0..with_cores.len()).rev().max_by_key(claim).expect("there are some");
        let (node, cores) = with_cores[at];
        let own = cores[seated[at] % cores.len()];
        seated[at] += 1;
        Some(Seat { node: *node, cores: if busy { vec![own] } else { cores.clone() } })
    };
    (0..reactors).map(seat).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_nodes() -> Vec<(u32, Vec<usize>)> {
        vec![(0, vec![0, 1, 2, 3]), (1, vec![4, 5, 6, 7])]
    }

    fn cores(seats: &[Option<Seat>]) -> Vec<usize> {
        seats
            .iter()
            .map(|seat| seat.as_ref().expect("it has one").core().expect("one core"))
            .collect()
    }

    #[test]
    fn reactors_sit_where_the_drives_are_and_the_first_where_most_are() {
        let drives = [Some(1), Some(1), Some(1), Some(0)];
        let seats = assign(4, true, &drives, &two_nodes());
        assert_eq!(cores(&seats), [4, 5, 0, 6], "three to one, as the drives are");
        let all_on_one = assign(6, true, &[Some(1)], &two_nodes());
        assert_eq!(cores(&all_on_one), [4, 5, 6, 7, 0, 1], "the others when its cores are taken");
        let more_than_cores = assign(9, true, &[Some(1), Some(0)], &two_nodes());
        assert_eq!(cores(&more_than_cores), [0, 4, 1, 5, 2, 6, 3, 7, 0]);
    }

    #[test]
    fn a_reactor_that_sleeps_may_use_any_core_of_its_node() {
        let seats = assign(2, false, &[Some(0), Some(1)], &two_nodes());
        let nodes: Vec<u32> = seats.iter().flatten().map(|seat| seat.node).collect();
        assert_eq!(nodes, [0, 1]);
        assert_eq!(seats[1].as_ref().expect("a seat").cores, [4, 5, 6, 7]);
        assert_eq!(seats[1].as_ref().expect("a seat").core(), None);
    }

    #[test]
    fn where_it_does_not_matter_the_system_decides() {
        let one = vec![(0, vec![0, 1])];
        assert_eq!(assign(2, true, &[Some(0)], &one), [None, None]);
        assert_eq!(assign(2, true, &[None, None], &two_nodes()), [None, None]);
        assert_eq!(assign(2, true, &[Some(7)], &two_nodes()), [None, None], "none has cores there");
        let memory_alone = vec![(0, vec![0, 1]), (1, vec![])];
        assert_eq!(assign(1, true, &[Some(1)], &memory_alone), [None]);
    }
}
