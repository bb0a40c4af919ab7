//! Arguments and results of a pool: of every size, with handles inside, and those that cannot be encoded or decoded.

mod common;

use common::*;
use proc_pool::queue::{Receiver, Sender, bounded};
use proc_pool::{Pool, TaskError};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// In the cell, in the arena, and beyond it.
const SIZES: [usize; 8] = [0, 100, 200, 1024, 100 << 10, (1 << 20) - 100, 3 << 20, 40 << 20];

fn pool(workers: usize) -> Pool {
    Pool::new(workers).expect("a pool")
}

fn same<T>(value: T) -> T {
    value
}

fn length(bytes: Bytes) -> u64 {
    bytes.0.len() as u64
}

fn made((len, seed): (usize, u8)) -> Bytes {
    Bytes::pattern(len, seed)
}

fn number(faulty: Faulty) -> u32 {
    faulty.number
}

fn tripled(number: u32) -> u32 {
    3 * number
}

/// The pool still does what it should.
#[track_caller]
fn goes_on(pool: &Pool) {
    assert_eq!(pool.call(tripled, 5).expect("called"), 15);
    let expected: Vec<u32> = (0..2000).map(tripled).collect();
    assert_eq!(pool.job(tripled).chunk_size(3).map(0..2000).expect("mapped"), expected);
}

#[track_caller]
fn assert_codec<R: std::fmt::Debug>(outcome: Result<R, TaskError>, words: &str) {
    match outcome {
        Err(TaskError::Codec { message, .. }) => assert!(message.contains(words), "{message}"),
        other => panic!("not a codec error: {other:?}"),
    }
}

#[track_caller]
fn task_error<R: std::fmt::Debug>(result: proc_pool::Result<R>) -> Result<R, TaskError> {
    result.map_err(|error| error.into_task().expect("the failure of a task"))
}

#[test]
fn a_call_takes_and_returns_values_of_every_size() {
    let _watch = watchdog();
    let pool = pool(2);
    for len in SIZES {
        let value = Bytes::pattern(len, 1);
        // The second time the pool knows how large results are.
        for _ in 0..2 {
            assert!(pool.call(same::<Bytes>, value.clone()).expect("called") == value);
            assert_eq!(pool.call(length, value.clone()).expect("called"), len as u64);
            assert!(pool.call(made, (len, 1)).expect("called") == value);
        }
    }
}

#[test]
fn a_submitted_task_takes_and_returns_values_of_every_size() {
    let _watch = watchdog();
    let pool = pool(2);
    let tasks = SIZES.map(|len| pool.submit(same::<Bytes>, Bytes::pattern(len, 2)).expect("submitted"));
    for (len, task) in SIZES.into_iter().zip(tasks) {
        assert!(task.join().expect("a result") == Bytes::pattern(len, 2));
    }
}

#[test]
fn a_map_takes_and_returns_values_of_every_size() {
    let _watch = watchdog();
    let pool = pool(2);
    for len in SIZES {
        let count = if len > 1 << 20 { 3 } else { 20 };
        let items = || (0..count).map(|seed| Bytes::pattern(len, seed));
        for chunk in [1, 7] {
            let results = pool.job(same::<Bytes>).chunk_size(chunk).map(items());
            assert!(results.expect("mapped").into_iter().eq(items()));
        }
    }
}

#[test]
fn lazy_maps_take_and_return_values_of_every_size() {
    let _watch = watchdog();
    let pool = pool(2);
    // All sizes mixed, so that chunks hold both.
    let sizes = || SIZES.into_iter().chain(SIZES.into_iter().rev()).zip(0..);
    let expected = || sizes().map(|(len, seed)| Ok(Bytes::pattern(len, seed)));
    assert!(pool.imap(made, sizes()).eq(expected()));
    assert!(pool.job(made).chunk_size(5).imap(sizes()).eq(expected()));
    let job = pool.job(same::<Bytes>).chunk_size(3);
    assert!(job.imap(sizes().map(|(len, seed)| Bytes::pattern(len, seed))).eq(expected()));
    let mut lens: Vec<usize> =
        pool.imap_unordered(made, sizes()).map(|bytes| bytes.expect("a result").0.len()).collect();
    lens.sort_unstable();
    let mut expected: Vec<usize> = sizes().map(|(len, _)| len).collect();
    expected.sort_unstable();
    assert_eq!(lens, expected);
}

#[test]
fn thousands_of_large_results_outgrow_the_arena_and_come_all_the_same() {
    let _watch = watchdog();
    let pool = pool(2);
    // 512 in flight at 900 KiB are more than the arena has.
    let results = pool.imap(made, (0..700).map(|_| (900 << 10, 3)));
    assert!(results.map(|bytes| bytes.expect("a result").0.len()).eq((0..700).map(|_| 900 << 10)));
}

#[test]
fn a_sender_in_an_argument_sends() {
    let _watch = watchdog();
    let pool = pool(2);
    let (tx, rx) = bounded::<u64>(64).expect("a queue");
    let send = |(tx, number): (Sender<u64>, u64)| tx.send(number).is_ok();
    assert!(pool.call(send, (tx.clone(), 0)).expect("called"));
    assert_eq!(pool.submit(send, (tx.clone(), 1)).expect("submitted").join(), Ok(true));
    let items = |from: u64| (from..from + 10).map(|number| (tx.clone(), number));
    for chunk in [1, 4] {
        let job = pool.job(send).chunk_size(chunk);
        assert_eq!(job.map(items(2)).expect("mapped"), [true; 10]);
    }
    assert_eq!(pool.imap(send, items(2)).filter(|sent| *sent == Ok(true)).count(), 10);
    drop(tx);
    // The workers hold none any more either, so the queue ends.
    let mut received: Vec<u64> = rx.iter().map(|number| number.expect("it decodes")).collect();
    received.sort_unstable();
    assert_eq!((received.len(), received[1], received[31]), (32, 1, 11));
}

#[test]
fn a_receiver_in_an_argument_receives() {
    let _watch = watchdog();
    let pool = pool(1);
    let (tx, rx) = bounded::<u64>(4).expect("a queue");
    let sum = |rx: Receiver<u64>| rx.iter().map(|number| number.expect("it decodes")).sum::<u64>();
    let task = pool.submit(sum, rx).expect("submitted");
    for number in 0..100 {
        tx.send(number).expect("the task receives");
    }
    drop(tx);
    assert_eq!(task.join(), Ok(4950));
}

/// A queue with one number in it.
fn queue(number: u64) -> (Sender<u64>, Receiver<u64>) {
    let (tx, rx) = bounded(4).expect("a queue");
    tx.send(number).expect("room");
    (tx, rx)
}

#[test]
fn queue_ends_come_back_as_results() {
    let _watch = watchdog();
    let pool = pool(2);
    let open = |(tx, rx): (Sender<u64>, Receiver<u64>)| {
        drop(tx);
        let numbers: Vec<u64> = rx.iter().map(|number| number.expect("it decodes")).collect();
        numbers
    };
    assert_eq!(open(pool.call(queue, 7).expect("called")), [7]);
    let task = pool.submit(queue, 8).expect("submitted");
    assert_eq!(task.join().map(open), Ok(vec![8]));
    for chunk in [1, 6] {
        let queues = pool.job(queue).chunk_size(chunk).map(0..20).expect("mapped");
        assert!(queues.into_iter().map(open).eq((0..20).map(|number| vec![number])));
    }
    let queues = pool.imap(queue, 0..20).map(|ends| ends.map(open));
    assert!(queues.eq((0..20).map(|number| Ok(vec![number]))));
}

#[test]
fn more_handles_than_a_message_carries_are_sent_in_smaller_chunks() {
    let _watch = watchdog();
    let pool = pool(2);
    let (mut reader, writer) = pipe();
    let say = |(writer, number): (Handle, u32)| {
        if number % 100 == 0 {
            writer.say(number);
        }
        number
    };
    let items = (0..600).map(|number| (Handle(writer.0.try_clone().expect("a descriptor")), number));
    let job = pool.job(say).chunk_size(400).in_flight(600);
    assert_eq!(job.map(items).expect("mapped"), (0..600).collect::<Vec<_>>());
    drop(writer);
    let mut said: Vec<String> = (0..6).map(|_| line(&mut reader)).collect();
    said.sort_unstable();
    assert_eq!(said, ["0", "100", "200", "300", "400", "500"]);
    assert_eq!(line(&mut reader), "");
}

#[test]
fn an_argument_with_too_many_handles_is_refused_by_name() {
    let _watch = watchdog();
    let pool = pool(1);
    let writers = |count: usize| -> Vec<Handle> {
        let (_, writer) = pipe();
        (0..count).map(|_| Handle(writer.0.try_clone().expect("a descriptor"))).collect()
    };
    let count = |writers: Vec<Handle>| writers.len();
    assert_eq!(pool.call(count, writers(200)).expect("called"), 200);
    assert_codec(task_error(pool.call(count, writers(300))), "300 handles");
    let outcomes: Vec<_> = pool.imap(count, [3, 300, 4].map(writers)).collect();
    assert_eq!((&outcomes[0], &outcomes[2]), (&Ok(3), &Ok(4)));
    assert_codec(outcomes[1].clone(), "300 handles");
    goes_on(&pool);
}

/// So many handles.
fn handles(count: usize) -> Vec<Handle> {
    let (_, writer) = pipe();
    (0..count).map(|_| Handle(writer.0.try_clone().expect("a descriptor"))).collect()
}

#[test]
fn a_result_with_too_many_handles_is_refused_by_name() {
    let _watch = watchdog();
    let pool = pool(1);
    assert_eq!(pool.call(handles, 200).expect("called").len(), 200);
    let refused = task_error(pool.call(handles, 300).map(|handles| handles.len()));
    assert_codec(refused, "more than 240 handles");
    goes_on(&pool);
}

#[test]
fn many_results_with_handles_in_one_chunk_come_or_are_refused_one_by_one() {
    let _watch = watchdog();
    let pool = pool(1);
    let outcomes = pool.job(handles).chunk_size(400).imap((0..400).map(|_| 1));
    let (mut good, mut refused) = (0, 0);
    for outcome in outcomes {
        match outcome {
            Ok(handles) => good += handles.len(),
            Err(TaskError::Codec { .. }) => refused += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(good + refused, 400);
    assert!(good >= 200, "{good}");
    goes_on(&pool);
}

#[test]
fn an_argument_that_does_not_encode_fails_its_call_alone() {
    let _watch = watchdog();
    let pool = pool(1);
    let bad = Faulty::encoding(1, Fault::Error);
    assert_codec(task_error(pool.call(number, bad)), "the argument cannot be encoded");
    assert_codec(task_error(pool.submit(number, bad).map(drop)), "the argument cannot be encoded");
    goes_on(&pool);
}

#[test]
fn items_that_do_not_encode_fail_alone() {
    let _watch = watchdog();
    let pool = pool(2);
    let faulty = |number: u32| match number % 5 {
        2 => Faulty::encoding(number, Fault::Error),
        _ => Faulty::none(number),
    };
    for chunk in [1, 4, 100] {
        let job = pool.job(number).chunk_size(chunk);
        assert_codec(task_error(job.map((0..1000).map(faulty))), "cannot be encoded");
        for (number, outcome) in (0..).zip(job.imap((0..1000).map(faulty))) {
            if number % 5 == 2 {
                assert_codec(outcome, "cannot be encoded");
            } else {
                assert_eq!(outcome, Ok(number));
            }
        }
        let (good, bad): (Vec<_>, Vec<_>) =
            job.imap_unordered((0..1000).map(faulty)).partition(|outcome| outcome.is_ok());
        assert_eq!((good.len(), bad.len()), (800, 200));
    }
    goes_on(&pool);
}

#[test]
fn a_map_of_nothing_but_items_that_do_not_encode_ends() {
    let _watch = watchdog();
    let pool = pool(1);
    let bad = |count: u32| (0..count).map(|number| Faulty::encoding(number, Fault::Error));
    let job = pool.job(number).in_flight(2);
    assert_codec(task_error(job.map(bad(9))), "cannot be encoded");
    assert_codec(task_error(pool.map(number, bad(100_000))), "cannot be encoded");
    assert_eq!(job.imap(bad(9)).filter(|outcome| outcome.is_err()).count(), 9);
    assert_eq!(job.imap_unordered(bad(9)).filter(|outcome| outcome.is_err()).count(), 9);
    goes_on(&pool);
}

#[test]
fn an_argument_that_does_not_decode_fails_its_item_alone() {
    let _watch = watchdog();
    let pool = pool(1);
    let bad = Faulty::decoding(1, Fault::Error);
    assert_codec(task_error(pool.call(number, bad)), "the argument cannot be decoded");
    let items = [Faulty::none(0), bad, Faulty::none(2)];
    let outcomes: Vec<_> = pool.job(number).chunk_size(3).imap(items).collect();
    assert_eq!((&outcomes[0], &outcomes[2]), (&Ok(0), &Ok(2)));
    assert_codec(outcomes[1].clone(), "the argument cannot be decoded");
    goes_on(&pool);
}

fn faulty(number: u32) -> Faulty {
    match number {
        1 => Faulty::encoding(number, Fault::Error),
        2 => Faulty::decoding(number, Fault::Error),
        _ => Faulty::none(number),
    }
}

#[test]
fn a_result_that_does_not_encode_or_decode_fails_its_item_alone() {
    let _watch = watchdog();
    let pool = pool(1);
    assert_codec(task_error(pool.call(faulty, 1)), "the result cannot be encoded");
    assert_codec(task_error(pool.call(faulty, 2)), "the result cannot be decoded");
    let task = pool.submit(faulty, 2).expect("submitted");
    for _ in 0..2 {
        assert_codec(task.join(), "the result cannot be decoded");
    }
    for chunk in [1, 4] {
        let outcomes: Vec<_> = pool.job(faulty).chunk_size(chunk).imap(0..4).collect();
        assert_eq!(outcomes[0], Ok(faulty(0)));
        assert_codec(outcomes[1].clone(), "the result cannot be encoded");
        assert_codec(outcomes[2].clone(), "the result cannot be decoded");
        assert_eq!(outcomes[3], Ok(faulty(3)));
    }
    goes_on(&pool);
}

#[test]
fn a_result_whose_decoding_panics_here_leaves_nothing_waiting() {
    let _watch = watchdog();
    let pool = pool(1);
    let bad = |number: u32| match number {
        0 => Faulty::none(0),
        _ => Faulty::decoding(number, Fault::Panic),
    };
    let task = pool.submit(bad, 1).expect("submitted");
    assert!(catch_unwind(AssertUnwindSafe(|| task.join())).is_err());
    assert!(task.join().is_err(), "the result is gone");
    assert!(catch_unwind(AssertUnwindSafe(|| pool.call(bad, 1))).is_err());
    assert!(catch_unwind(AssertUnwindSafe(|| pool.map(bad, 0..9))).is_err());
    let mut lazy = pool.imap(bad, 0..9);
    assert_eq!(ends(|| lazy.next()).0, 1);
    goes_on(&pool);
}

/// Takes all, panics or not; returns the number of panics and of results.
fn ends<R>(mut next: impl FnMut() -> Option<Result<R, TaskError>>) -> (u32, u32) {
    let (mut panics, mut results) = (0, 0);
    loop {
        match catch_unwind(AssertUnwindSafe(&mut next)) {
            Ok(Some(Ok(_))) => results += 1,
            Ok(Some(Err(error))) => panic!("{error}"),
            Ok(None) => return (panics, results),
            Err(_) => panics += 1,
        }
    }
}

/// Numbers up to `count`, and then a panic.
fn up_to(count: u32) -> impl Iterator<Item = u32> {
    (0..).inspect(move |&number| assert!(number < count, "the iterator panics on purpose"))
}

#[test]
fn a_map_over_an_iterator_that_panics_panics_and_the_pool_goes_on() {
    let _watch = watchdog();
    let pool = pool(2);
    for count in [0, 1, 5, 1000] {
        let map = || pool.job(tripled).chunk_size(3).in_flight(10).map(up_to(count));
        assert!(catch_unwind(AssertUnwindSafe(map)).is_err());
        goes_on(&pool);
    }
}

#[test]
fn a_lazy_map_over_an_iterator_that_panics_panics_and_then_ends() {
    let _watch = watchdog();
    let pool = pool(2);
    for count in [0, 1, 5, 1000] {
        let job = pool.job(tripled).in_flight(10).chunk_size(3);
        let (mut ordered, mut unordered) = (job.imap(up_to(count)), job.imap_unordered(up_to(count)));
        for (panics, results) in [ends(|| ordered.next()), ends(|| unordered.next())] {
            assert!(panics == 1 && results <= count, "{panics} {results}");
        }
        goes_on(&pool);
    }
}
