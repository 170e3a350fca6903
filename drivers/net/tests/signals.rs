//! What a process that does not ignore SIGPIPE meets: nothing. It has a process of its own, since it says how
//! that takes the signal.

mod common;

use std::io::Read;
use std::time::Duration;

use memkv_dma::Class;
use memkv_net::{NetError, SendOp, send};

#[test]
fn a_send_to_a_peer_that_is_gone_is_an_error_and_no_signal() {
    // SAFETY: the default disposition runs no code of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    for driver in common::drivers() {
        let mut node = common::Node::new(driver);
        let (connection, mut peer) = node.pair();
        let payload = node.pool.allocate(Class::Send, 4 << 20).expect("memory").freeze();
        let reader = std::thread::spawn(move || {
            peer.read_exact(&mut vec![0; 1 << 20]).expect("read");
            socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).expect("linger");
        });
        node.run(async move {
            let mut op = SendOp { payload: vec![payload; 16], ..SendOp::default() };
            for _ in 0..4 {
                let (result, back) = send(&*connection, op).await;
                let gone = matches!(result, Err(NetError::Reset | NetError::Closed));
                assert!(gone, "{driver:?}: {result:?}");
                op = back;
            }
        });
        reader.join().expect("reader");
    }
}
