//! Tests of the reactor as a whole.

use std::rc::Rc;

use crate::{Reactor, ReactorConfig, Rng, SystemClock};

#[test]
fn block_on_returns_what_the_future_returned() {
    let mut reactor = Reactor::new(ReactorConfig::default(), Rc::new(SystemClock), Rng::seeded(1));
    let local = reactor.local();
    let answer = reactor.block_on(async move {
        let other = local.spawn_join(async { 40 });
        local.sleep(std::time::Duration::from_millis(1)).await;
        other.await + 2
    });
    assert_eq!(answer, 42);
}
