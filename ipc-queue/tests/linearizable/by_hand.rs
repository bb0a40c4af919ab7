//! Histories written by hand: what the checker accepts and what it does not.

use super::queue::{Answer, Call, History};
use Answer::{Lost, Nothing, Popped, Pushed};

const PRODUCER: u16 = 1;
const CONSUMER: u16 = 2;
const OTHER: u16 = 3;

fn push(first: u64, count: usize) -> Call {
    Call::Push { first, count }
}

fn pop(max: usize) -> Call {
    Call::Pop { max }
}

fn held(owner: u16, writing: bool) -> Answer {
    Answer::Held { owner, writing }
}

/// One operation after the other.
fn in_turn(capacity: usize, ops: impl IntoIterator<Item = (Call, Answer)>) -> History {
    let mut history = History::new(capacity);
    for (call, answer) in ops {
        let op = history.begin(OTHER, call);
        history.end(op, Some(answer));
    }
    history
}

#[track_caller]
fn assert_good(history: &History) {
    history.check().unwrap_or_else(|why| panic!("{why}"));
}

#[track_caller]
fn assert_bad(history: &History) {
    assert!(history.check().is_err(), "{history:?}");
}

#[test]
fn first_in_first_out_is_accepted() {
    assert_good(&in_turn(
        2,
        [
            (pop(1), Nothing),
            (push(10, 1), Pushed(1)),
            (push(20, 3), Pushed(1)),
            (push(30, 1), Nothing),
            (pop(3), Popped(vec![10, 20])),
            (pop(1), Nothing),
        ],
    ));
}

#[test]
fn messages_out_of_order_are_rejected() {
    let pops = [(pop(1), Popped(vec![20])), (pop(1), Popped(vec![10]))];
    assert_bad(&in_turn(2, [(push(10, 1), Pushed(1)), (push(20, 1), Pushed(1))].into_iter().chain(pops)));
}

#[test]
fn a_message_popped_twice_is_rejected() {
    let twice = [(push(10, 1), Pushed(1)), (pop(1), Popped(vec![10])), (pop(1), Popped(vec![10]))];
    assert_bad(&in_turn(2, twice));
}

#[test]
fn a_message_that_nobody_pushed_is_rejected() {
    assert_bad(&in_turn(2, [(push(10, 1), Pushed(1)), (pop(1), Popped(vec![11]))]));
}

#[test]
fn empty_while_there_is_a_message_is_rejected() {
    assert_bad(&in_turn(2, [(push(10, 1), Pushed(1)), (pop(1), Nothing)]));
}

#[test]
fn full_while_there_is_room_is_rejected() {
    assert_bad(&in_turn(2, [(push(10, 1), Pushed(1)), (push(20, 1), Nothing)]));
}

#[test]
fn more_messages_than_places_are_rejected() {
    assert_bad(&in_turn(1, [(push(10, 1), Pushed(1)), (push(20, 1), Pushed(1))]));
}

#[test]
fn a_batch_shorter_than_the_room_is_rejected() {
    assert_bad(&in_turn(3, [(push(10, 3), Pushed(2))]));
    assert_bad(&in_turn(3, [(push(10, 3), Pushed(3)), (pop(3), Popped(vec![10, 11]))]));
}

/// Room for one when the batch looked, for two when it claimed; nobody else came in between.
#[test]
fn a_batch_as_long_as_the_room_was_is_accepted() {
    let mut history = in_turn(2, [(push(10, 1), Pushed(1))]);
    let batch = history.begin(PRODUCER, push(20, 2));
    let taken = history.begin(CONSUMER, pop(1));
    history.end(taken, Some(Popped(vec![10])));
    let empty = history.begin(CONSUMER, pop(1));
    history.end(empty, Some(Nothing));
    history.end(batch, Some(Pushed(1)));
    assert_good(&history);
}

#[test]
fn pushes_that_overlap_may_take_effect_in_either_order() {
    for order in [[10, 20], [20, 10]] {
        let mut history = History::new(2);
        let pushes = [history.begin(PRODUCER, push(10, 1)), history.begin(OTHER, push(20, 1))];
        pushes.into_iter().for_each(|op| history.end(op, Some(Pushed(1))));
        let op = history.begin(CONSUMER, pop(2));
        history.end(op, Some(Popped(order.into())));
        assert_good(&history);
    }
}

/// A producer is slow with its message, and another's is behind it; both come to see `answers`.
fn slow_producer(answers: impl IntoIterator<Item = Answer>) -> History {
    let mut history = History::new(2);
    let slow = history.begin(PRODUCER, push(10, 1));
    for (call, answer) in [(pop(1), held(PRODUCER, true)), (push(20, 1), Pushed(1))] {
        let op = history.begin(OTHER, call);
        history.end(op, Some(answer));
    }
    for answer in answers {
        let op = history.begin(CONSUMER, pop(2));
        history.end(op, Some(answer));
    }
    history.end(slow, Some(Pushed(1)));
    history
}

#[test]
fn a_push_in_progress_may_hold_others_up() {
    assert_good(&slow_producer([held(PRODUCER, true), Popped(vec![10, 20]), Nothing]));
    assert_good(&slow_producer([held(PRODUCER, true), held(PRODUCER, true)]));
}

#[test]
fn a_push_in_progress_does_not_look_empty_and_is_not_overtaken() {
    assert_bad(&slow_producer([Nothing]));
    assert_bad(&slow_producer([Popped(vec![20])]));
    assert_bad(&slow_producer([Popped(vec![10, 20]), held(PRODUCER, true)]));
}

#[test]
fn nobody_is_held_up_by_an_operation_that_is_over() {
    let full = [(push(10, 1), Pushed(1)), (pop(1), Popped(vec![10])), (push(20, 1), held(OTHER, false))];
    assert_bad(&in_turn(1, full));
    assert_bad(&in_turn(1, [(push(10, 1), Pushed(1)), (push(20, 1), held(OTHER, true))]));
}

/// A message, and then one whose producer dies; somebody else comes to see `answers` afterwards.
fn dead_producer(answers: impl IntoIterator<Item = (Call, Answer)>) -> History {
    let mut history = in_turn(2, [(push(10, 1), Pushed(1))]);
    let op = history.begin(PRODUCER, push(20, 1));
    history.end(op, None);
    for (call, answer) in answers {
        let op = history.begin(OTHER, call);
        history.end(op, Some(answer));
    }
    history
}

const SWEEP_PRODUCER: Call = Call::Sweep { dead: PRODUCER };
const SWEEP_CONSUMER: Call = Call::Sweep { dead: CONSUMER };

#[test]
fn a_dead_producers_message_may_have_been_sent_or_not() {
    assert_good(&dead_producer([
        (SWEEP_PRODUCER, Lost(0)),
        (pop(2), Popped(vec![10, 20])),
        (pop(1), Nothing),
    ]));
    assert_good(&dead_producer([(SWEEP_PRODUCER, Lost(0)), (pop(2), Popped(vec![10])), (pop(1), Nothing)]));
    assert_good(&dead_producer([(push(30, 1), Pushed(1)), (pop(2), Popped(vec![10, 30]))]));
}

#[test]
fn a_dead_producers_message_does_not_change_its_mind() {
    assert_bad(&dead_producer([(pop(2), Popped(vec![10])), (pop(1), Nothing), (pop(1), Popped(vec![20]))]));
    assert_bad(&dead_producer([
        (SWEEP_PRODUCER, Lost(0)),
        (pop(1), Popped(vec![10])),
        (pop(1), held(PRODUCER, true)),
    ]));
}

#[test]
fn a_tomb_keeps_its_place_until_it_is_the_oldest() {
    let sweep_and_full = [(SWEEP_PRODUCER, Lost(0)), (push(30, 1), Nothing)];
    let until_the_pop =
        [(pop(1), Popped(vec![10])), (push(30, 2), Pushed(2)), (pop(2), Popped(vec![30, 31]))];
    assert_good(&dead_producer(sweep_and_full.into_iter().chain(until_the_pop)));
    assert_bad(&dead_producer([
        (SWEEP_PRODUCER, Lost(0)),
        (pop(2), Popped(vec![10])),
        (pop(1), Nothing),
        (push(30, 1), Pushed(1)),
        (push(40, 1), Nothing),
    ]));
}

/// Two messages, one of which a consumer may have taken when it died.
fn dead_consumer(answers: impl IntoIterator<Item = (Call, Answer)>) -> History {
    let mut history = in_turn(2, [(push(10, 2), Pushed(2))]);
    let op = history.begin(CONSUMER, pop(1));
    history.end(op, None);
    for (call, answer) in answers {
        let op = history.begin(OTHER, call);
        history.end(op, Some(answer));
    }
    history
}

#[test]
fn a_dead_consumer_takes_its_message_with_it_or_not() {
    assert_good(&dead_consumer([(SWEEP_CONSUMER, Lost(0)), (pop(2), Popped(vec![10, 11]))]));
    assert_good(&dead_consumer([
        (SWEEP_CONSUMER, Lost(1)),
        (pop(2), Popped(vec![11])),
        (push(20, 2), Pushed(2)),
    ]));
    // It had taken the message and freed its place.
    assert_good(&dead_consumer([
        (SWEEP_CONSUMER, Lost(0)),
        (pop(2), Popped(vec![11])),
        (push(20, 2), Pushed(2)),
    ]));
    assert_good(&dead_consumer([(pop(2), Popped(vec![11])), (push(20, 1), held(CONSUMER, false))]));
}

#[test]
fn what_a_dead_consumer_had_taken_is_lost_once() {
    assert_bad(&dead_consumer([(SWEEP_CONSUMER, Lost(1)), (SWEEP_CONSUMER, Lost(1))]));
    assert_bad(&dead_consumer([(SWEEP_CONSUMER, Lost(1)), (pop(2), Popped(vec![10, 11]))]));
    assert_bad(&dead_consumer([(SWEEP_CONSUMER, Lost(0)), (pop(2), Popped(vec![]))]));
}

#[test]
fn the_dead_do_nothing_more() {
    let mut history = in_turn(2, []);
    let op = history.begin(PRODUCER, push(10, 1));
    history.end(op, None);
    let op = history.begin(CONSUMER, pop(1));
    history.end(op, Some(Nothing));
    assert_good(&history);
    let op = history.begin(CONSUMER, pop(1));
    history.end(op, Some(Popped(vec![10])));
    assert_bad(&history);
}

#[test]
fn the_living_are_not_swept() {
    let mut history = History::new(1);
    let slow = history.begin(PRODUCER, push(10, 1));
    let op = history.begin(OTHER, push(20, 1));
    history.end(op, Some(held(PRODUCER, true)));
    let op = history.begin(OTHER, SWEEP_PRODUCER);
    history.end(op, Some(Lost(0)));
    let op = history.begin(OTHER, push(20, 1));
    history.end(op, Some(Pushed(1)));
    history.end(slow, Some(Pushed(1)));
    assert_bad(&history);
}
