//! Nothing keeps descriptors open. It has a process of its own, since it counts all there are.
#![cfg(target_os = "linux")]

mod common;

use std::io::Read;

use memkv_dma::Class;
use memkv_net::tcp::Driver;
use memkv_net::{RecvBuf, SendOp, send};

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("proc").count()
}

#[test]
fn connections_and_engines_that_come_and_go_leave_no_descriptor() {
    for driver in common::drivers() {
        // Whatever is made once per process is made here.
        come_and_go(driver, 1);
        let before = open_descriptors();
        come_and_go(driver, 300);
        assert_eq!(open_descriptors(), before, "{driver:?}");
        for _ in 0..20 {
            come_and_go(driver, 1);
        }
        assert_eq!(open_descriptors(), before, "{driver:?}");
    }
}

/// Opens and closes so many connections one after another, each with something outstanding.
fn come_and_go(driver: Driver, connections: usize) {
    let mut node = common::Node::new(driver);
    let payload = node.pool.allocate(Class::Send, 256 << 10).expect("memory").freeze();
    // A reactor that has run once has opened what it keeps.
    node.run(async {});
    let alone = open_descriptors();
    for round in 0..connections {
        let (connection, mut peer) = node.pair();
        connection.start_recv(RecvBuf::Small(vec![0; 8]), 0, 8);
        let received = round % 2 == 0;
        if received {
            let op = SendOp { payload: vec![payload.clone()], ..SendOp::default() };
            let connection = connection.clone();
            let reader = std::thread::spawn(move || {
                peer.read_exact(&mut vec![0; 256 << 10]).expect("read");
                peer
            });
            node.run(async move { send(&*connection, op).await.0 }).expect("sent");
            peer = reader.join().expect("reader");
        }
        assert_eq!(open_descriptors(), alone + 2, "both ends, {driver:?}");
        drop(connection);
        assert_eq!(open_descriptors(), alone + 1, "closed at once, {driver:?}");
        // And for the peer, too: nothing else holds on to the socket.
        assert_eq!(peer.read(&mut [0]).expect("the end"), 0);
    }
}
