//! Which block is where: index, placement, leases, eviction.
