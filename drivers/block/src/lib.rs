//! Block devices: memory, io_uring and worker threads.
