//! What a pool does, one fact per test.

mod common;

use common::watchdog;
use proc_pool::Pool;

fn square(x: u64) -> u64 {
    x * x
}

#[test]
fn a_call_returns_its_result() {
    let _watch = watchdog();
    let pool = Pool::new(2).expect("a pool");
    for x in 0..1000 {
        assert_eq!(pool.call(square, x).expect("called"), x * x);
    }
}

#[test]
fn a_map_keeps_the_order() {
    let _watch = watchdog();
    let pool = Pool::new(2).expect("a pool");
    let expected: Vec<u64> = (0..100_000).map(square).collect();
    assert_eq!(pool.map(square, 0..100_000).expect("mapped"), expected);
    assert_eq!(
        pool.job(square).chunk_size(1).map(0..100_000).expect("mapped"),
        expected
    );
    assert_eq!(
        pool.job(square)
            .chunk_size(7)
            .in_flight(20)
            .map(0..100_000)
            .expect("mapped"),
        expected
    );
}

#[test]
fn imap_yields_in_order_and_imap_unordered_everything() {
    let _watch = watchdog();
    let pool = Pool::new(3).expect("a pool");
    let ordered: Vec<u64> = pool
        .imap(square, 0..10_000)
        .map(|r| r.expect("a result"))
        .collect();
    assert_eq!(ordered, (0..10_000).map(square).collect::<Vec<_>>());
    let mut any: Vec<u64> = pool
        .imap_unordered(square, 0..10_000)
        .map(|r| r.expect("a result"))
        .collect();
    any.sort_unstable();
    assert_eq!(any, ordered);
}
