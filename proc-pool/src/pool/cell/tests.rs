//! One use of a cell after the other.

use super::*;

fn shared() -> Shared {
    Shared::create(Geometry { workers: 2, cells: 4 }).expect("a small segment")
}

const TASK: Task =
    Task { function: 3, start: 2, end: 5, flags: 0, argument: (INLINE, 3), result: (INLINE, 240) };

#[test]
fn an_offer_is_begun_once() {
    let shared = shared();
    let cell = shared.cell(1).expect("there are four");
    cell.write_arguments(b"abc");
    cell.offer(1, &TASK);
    assert_eq!(cell.state(1), State::Pending);
    assert!(cell.begin(1, 7));
    assert!(!cell.begin(1, 8));
    assert_eq!(cell.state(1), State::Running(7));
    assert_eq!(cell.task(), TASK);
    assert_eq!(cell.last_progress(), (2, 2));
    cell.write_result(0, b"xy");
    assert!(cell.finish(1, 7, 2, SPILLED));
    assert_eq!((cell.state(1), cell.result()), (State::Done(7), (2, SPILLED)));
    let (mut arguments, mut result) = (Vec::new(), Vec::new());
    cell.read_arguments(3, &mut arguments);
    cell.read_result(usize::MAX, &mut result);
    assert_eq!((arguments.as_slice(), &result[..2], result.len()), (&b"abc"[..], &b"xy"[..], INLINE_RESULT));
}

#[test]
fn a_late_reader_of_the_last_use_gets_nothing() {
    let shared = shared();
    let cell = shared.cell(0).expect("there are four");
    cell.offer(1, &TASK);
    assert!(cell.revoke(1));
    assert!(!cell.begin(1, 7));
    cell.offer(2, &TASK);
    assert!(!cell.begin(1, 7));
    assert_eq!(cell.state(1), State::Other);
    assert!(cell.begin(2, 7));
    assert!(!cell.revoke(2));
}

#[test]
fn a_number_from_outside_is_checked() {
    assert!(shared().cell(4).is_none());
    let record = Record { cell: 5, generation: 9 };
    assert_eq!(Record::from_word(record.to_word()), record);
}

#[test]
fn an_idle_worker_is_taken_once() {
    let shared = shared();
    let worker = shared.worker(1);
    assert!(!worker.take(Worker::RESERVED), "it is not there yet");
    worker.status.store(Worker::IDLE, Ordering::Release);
    assert!(worker.take(Worker::RESERVED) && !worker.take(Worker::BUSY));
}
