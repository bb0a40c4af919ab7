//! Deaths at every step of creating, letting go and removing.

use super::*;
use std::collections::BTreeSet;

fn half_made() -> BTreeSet<String> {
    let names = std::fs::read_dir("/dev/shm").expect("listed");
    let names = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with("shm-core.new.")).collect()
}

/// A child does this and dies at the crash point.
fn dies(orders: &Orders, crash_point: &str) {
    let peer = start(orders, Some(crash_point));
    assert!(was_killed(peer.wait()), "{crash_point} was not reached");
}

#[test]
fn every_crash_point_is_tested() {
    let sources = [include_str!("../../src/named.rs"), include_str!("../../src/named/removal.rs")];
    let points = sources.iter().flat_map(|source| source.split("crash_point!(\"").skip(1));
    let points: BTreeSet<_> = points.filter_map(|rest| rest.split('"').next()).collect();
    let tested: BTreeSet<_> =
        BEFORE_THE_NAME.into_iter().chain(WITH_THE_NAME).chain(["named.unlink.locked"]).collect();
    assert_eq!(points, tested);
}

const BEFORE_THE_NAME: [&str; 4] =
    ["named.create.first", "named.create.marked", "named.create.locked", "named.create.filled"];
const WITH_THE_NAME: [&str; 3] = ["named.create.published", "named.drop.unmapped", "named.remove.locked"];

#[test]
fn a_creator_that_dies_before_the_name_leaves_nothing() {
    let _watchdog = watchdog();
    for point in BEFORE_THE_NAME {
        let name = free_name();
        dies(&Orders::Churn { name: name.clone(), len: 100_000, times: 1 }, point);
        assert!(NamedMemory::open(&name).expect_err("half made").is_not_found(), "{point}");
        // Those of living creators go, too.
        let left = half_made();
        eventually(point, || {
            named::scavenge().expect("listed");
            half_made().is_disjoint(&left)
        });
        NamedMemory::create(&name, 1).expect("the name is free");
    }
}

#[test]
fn a_creator_that_dies_with_the_name_leaves_what_can_be_used_or_scavenged() {
    let _watchdog = watchdog();
    for point in WITH_THE_NAME {
        let name = free_name();
        dies(&Orders::Churn { name: name.clone(), len: 100_000, times: 1 }, point);
        match NamedMemory::open(&name) {
            Ok(memory) => memory.read_at(99_999, &mut [0]).expect("it is whole"),
            // Somebody has created meanwhile, and scavenged.
            Err(error) => assert!(error.is_not_found(), "{error}"),
        }
        scavenged(&name);
    }
}

#[test]
fn somebody_who_dies_while_unlinking_stops_nobody_else() {
    let _watchdog = watchdog();
    let memory = memory(1);
    dies(&Orders::Unlink { name: memory.name().to_owned() }, "named.unlink.locked");
    memory.unlink().expect("unlinked");
}
