//! Whole segments with a name.

use super::common::Reporter;
use super::forked::{in_forked_child, returned_true};
use super::*;
use shm_core::segment::{Segment, Spec};
use std::os::fd::AsRawFd;
use std::sync::Arc;

const SPEC: Spec = Spec {
    kind: 42,
    layout_hash: 7,
    body_len: 10_000,
    sweep: |segment, _| {
        word(segment, 1).fetch_add(1, Ordering::Relaxed);
        true
    },
    arrived: |_| (),
};

fn word(segment: &Segment, index: usize) -> &AtomicU64 {
    // SAFETY: the body has 10,000 bytes and is only used as atomics here.
    unsafe { segment.body().cast::<AtomicU64>().add(index).as_ref() }
}

fn create(name: &str) -> Result<Arc<Segment>, SegmentError> {
    Segment::create_named(name, &SPEC, |body| {
        // SAFETY: aligned, inside the body, and nobody else sees it yet.
        unsafe { body.cast::<u64>().write(100) }
    })
}

/// In a child.
pub(crate) fn attach(name: &str, reporter: &Reporter) {
    let segment = Segment::open_named(name, &SPEC).expect("attached");
    let before = word(&segment, 0).fetch_add(1, Ordering::Relaxed);
    reporter.report(&(segment.participant(), before));
    wait_to_be_killed();
}

#[test]
fn a_named_segment_is_found_whole_by_another_process() {
    let _watchdog = watchdog();
    let name = free_name();
    let segment = create(&name).expect("created");
    assert_eq!(segment.name(), Some(name.as_str()));
    let peer = start(&Orders::Attach { name }, None);
    let (participant, before) = peer.report::<(u16, u64)>().expect("attached");
    assert_ne!(participant, segment.participant());
    assert_eq!((before, word(&segment, 0).load(Ordering::Relaxed)), (100, 101));
    assert!(!segment.is_dead(participant));
    assert!(was_killed(peer.kill()));
    eventually("the lock falls", || segment.is_dead(participant));
    assert_eq!(segment.sweep(), 1);
    assert_eq!(word(&segment, 1).load(Ordering::Relaxed), 1);
}

#[test]
fn a_process_attaches_once() {
    let name = free_name();
    let segment = create(&name).expect("created");
    assert!(Arc::ptr_eq(&segment, &Segment::open_named(&name, &SPEC).expect("attached")));
}

#[test]
fn the_last_participant_takes_the_name_away() {
    let _alone = STARTING.write();
    let name = free_name();
    let segment = create(&name).expect("created");
    let token = segment.token(0).expect("a token");
    drop(segment);
    assert!(exists(&name), "in flight");
    let again = Segment::open_named(&name, &SPEC).expect("attached");
    drop(token);
    named::scavenge().expect("listed");
    assert!(exists(&name));
    drop(again);
    assert!(!exists(&name));
}

#[test]
fn a_participant_in_another_process_keeps_the_name_until_it_is_killed() {
    let _watchdog = watchdog();
    let name = free_name();
    let segment = create(&name).expect("created");
    let peer = start(&Orders::Attach { name: name.clone() }, None);
    peer.report::<(u16, u64)>().expect("attached");
    drop(segment);
    named::scavenge().expect("listed");
    let again = Segment::open_named(&name, &SPEC).expect("kept");
    assert_eq!(word(&again, 0).load(Ordering::Relaxed), 101);
    drop(again);
    assert!(was_killed(peer.kill()));
    scavenged(&name);
}

#[test]
fn a_segment_of_the_dead_can_be_taken_over() {
    let _watchdog = watchdog();
    let name = free_name();
    let segment = create(&name).expect("created");
    let peer = start(&Orders::Attach { name: name.clone() }, None);
    let (dead, _) = peer.report::<(u16, u64)>().expect("attached");
    segment.persist().expect("persists");
    drop(segment);
    assert!(was_killed(peer.kill()));
    let again = Segment::open_named(&name, &SPEC).expect("it persists");
    eventually("swept", || again.sweep() > 0 || !again.is_attached(dead) || again.participant() == dead);
    assert_eq!(word(&again, 1).load(Ordering::Relaxed), 1);
    again.unlink().expect("unlinked");
    assert!(again.unlink().expect_err("gone").is_not_found());
}

#[test]
fn a_taken_name_and_a_bad_one_are_refused() {
    let name = free_name();
    let _segment = create(&name).expect("created");
    assert!(create(&name).expect_err("taken").is_name_taken());
    assert!(create("a/b").expect_err("no name").is_bad_name());
    assert!(Segment::open_named("a/b", &SPEC).expect_err("no name").is_bad_name());
    assert!(Segment::open_named(&free_name(), &SPEC).expect_err("missing").is_not_found());
    let sized = |body_len| Segment::create_named(&free_name(), &Spec { body_len, ..SPEC }, |_| ());
    assert!(sized(0).expect_err("empty").is_empty_size());
    assert!(sized(usize::MAX).expect_err("too large").is_too_large());
}

#[test]
fn what_is_no_segment_of_this_kind_is_refused() {
    let name = free_name();
    let segment = create(&name).expect("created");
    for spec in
        [Spec { kind: 1, ..SPEC }, Spec { layout_hash: 1, ..SPEC }, Spec { body_len: 1 << 20, ..SPEC }]
    {
        assert!(Segment::open_named(&name, &spec).expect_err("another spec").is_foreign());
    }
    for len in [1, 100, 20_000] {
        let raw = memory(len);
        assert!(Segment::open_named(raw.name(), &SPEC).expect_err("no header").is_foreign(), "{len}");
    }
    assert!(Segment::attach(segment.descriptor(), &SPEC).expect_err("not sealed").is_foreign());
}

#[test]
fn a_segment_of_another_user_is_refused() {
    let name = free_name();
    let segment = create(&name).expect("created");
    // SAFETY: a descriptor that is open; -1 keeps the group.
    if unsafe { libc::fchown(segment.descriptor().as_raw_fd(), 65534, u32::MAX) } != 0 {
        // Only root can give it away, and only root could open it then.
        return;
    }
    let error = Segment::open_named(&name, &SPEC).expect_err("another user's");
    assert!(error.is_foreign() && error.to_string().contains("its user"), "{error}");
    segment.unlink().expect("unlinked");
}

#[test]
fn a_segment_without_a_name_has_none() {
    let segment = Segment::create(&SPEC, |_| ()).expect("created");
    assert_eq!(segment.name(), None);
    assert!(segment.unlink().expect_err("no name").is_not_found());
    segment.persist().expect("nothing to do");
}

#[test]
fn a_forked_child_attaches_again_and_keeps_the_name() {
    let _watchdog = watchdog();
    let name = free_name();
    let mut segment = Some(create(&name).expect("created"));
    let (gone, gone_end) = rustix::pipe::pipe().expect("a pipe");
    let (attached, attached_end) = rustix::pipe::pipe().expect("a pipe");
    let child = in_forked_child(|| {
        let inherited = segment.as_ref().expect("inherited");
        inherited.ensure().expect("attached again");
        rustix::io::write(&attached_end, &[1]).expect("told");
        rustix::io::read(&gone, &mut [0]).expect("heard");
        let kept = exists(&name) && word(inherited, 0).load(Ordering::Relaxed) == 100;
        drop(segment.take());
        kept
    });
    rustix::io::read(&attached, &mut [0]).expect("heard");
    drop(segment);
    rustix::io::write(&gone_end, &[1]).expect("told");
    returned_true(child);
    scavenged(&name);
}
