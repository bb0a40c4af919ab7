//! A queue is closed while messages are sent: nothing whose send succeeds is left behind by a receiver that was told so.

use super::*;
use ipc_queue::closing::Flags;

/// A ring that can be closed, and the line on which its consumers sleep.
struct Gate {
    world: Arc<World>,
    flags: Flags,
    not_empty: WaitLine,
    /// Says nothing: loom switches threads in front of accesses that conflict with others', not in front of fences.
    switch: AtomicU32,
}

fn gate(capacity: usize) -> Arc<Gate> {
    let (flags, switch) = (Flags::new(), AtomicU32::new(0));
    Arc::new(Gate { world: World::new(capacity), flags, not_empty: WaitLine::new(), switch })
}

impl Gate {
    /// Closes, and wakes everybody.
    fn close(&self) -> bool {
        let closed = self.flags.close();
        self.not_empty.notify_all();
        closed
    }

    /// Pushes `first` and what counts on from it, at once, unless the queue is closed; returns whether it did.
    fn push(&self, cursor: &Cursor, me: u16, first: u64, count: usize) -> bool {
        let write = |i, slot| put(slot, first + i as u64);
        let permit = || (self.switch.load(Relaxed), self.flags.permits()).1;
        match self.world.ring().try_push_batch_if(cursor, me, count, permit, write) {
            Ok(_) => true,
            Err(PushError::Refused) => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// As [`Gate::push`], and wakes whoever waits for the message or the end.
    fn send(&self, cursor: &Cursor, me: u16, first: u64, count: usize) -> bool {
        if self.flags.is_closed() {
            return false;
        }
        let sent = self.push(cursor, me, first, count);
        if sent {
            self.not_empty.notify(1);
        } else {
            self.not_empty.notify_all();
        }
        sent
    }

    /// A message; `None` if the queue is closed and empty; otherwise something may come yet.
    fn try_recv(&self, cursor: &Cursor, me: u16) -> Result<Option<u64>, ()> {
        let last = self.flags.is_final();
        match self.world.try_pop(cursor, me) {
            Ok(message) => Ok(Some(message)),
            Err(PopError::Empty) if last => Ok(None),
            Err(_) => Err(()),
        }
    }

    /// What there is until the end.
    fn drain(&self, cursor: &Cursor, me: u16) -> Vec<u64> {
        let mut got = Vec::new();
        loop {
            match self.try_recv(cursor, me) {
                Ok(Some(message)) => got.push(message),
                Ok(None) => return got,
                Err(()) => thread::yield_now(),
            }
        }
    }

    fn assert_drained(&self, got: usize, sent: usize) {
        assert_eq!(got, sent, "left behind");
        let rest = self.world.try_pop(&Cursor::new(), 4);
        assert_eq!(rest, Err(PopError::Empty), "left behind");
    }
}

fn join<R>(body: impl FnOnce(&Gate) -> R + 'static, gate: &Arc<Gate>) -> loom::thread::JoinHandle<R>
where
    R: 'static,
{
    let gate = gate.clone();
    loom::thread::spawn(move || body(&gate))
}

/// A sender, a closer and a receiver.
pub(crate) fn a_send_against_a_close() {
    let gate = gate(1);
    let sender = join(|g| g.send(&Cursor::new(), 1, 10, 1), &gate);
    let closer = join(|g| assert!(g.close()), &gate);
    let got = gate.drain(&Cursor::new(), 2);
    closer.join().unwrap();
    let sent = sender.join().unwrap();
    gate.assert_drained(got.len(), usize::from(sent));
    assert!(!gate.send(&Cursor::new(), 1, 11, 1), "closed");
}

/// The control: a sender that looks before its claim only.
pub(crate) fn a_send_without_a_second_look() {
    let gate = gate(1);
    let sender = join(
        |g| {
            let push = || g.world.ring().try_push_if(&Cursor::new(), 1, || true, |_, slot| put(slot, 10));
            !g.flags.is_closed() && push().is_ok()
        },
        &gate,
    );
    assert!(gate.close());
    let got = gate.drain(&Cursor::new(), 2);
    let sent = sender.join().unwrap();
    gate.assert_drained(got.len(), usize::from(sent));
}

/// Two close: one of them has done it.
pub(crate) fn one_of_two_closers_closes() {
    let gate = gate(1);
    let other = join(Gate::close, &gate);
    let mine = gate.close();
    assert!(mine != other.join().unwrap());
    assert_eq!(gate.drain(&Cursor::new(), 2), []);
}

/// Two threads send through one cursor, which says where to look first; one of them closes and receives.
pub(crate) fn sends_of_two_threads_against_a_close() {
    let gate = gate(2);
    let cursor = Arc::new(Cursor::new());
    let other = join(
        {
            let cursor = cursor.clone();
            move |g| g.send(&cursor, 1, 10, 1)
        },
        &gate,
    );
    let receiver = join(
        move |g| {
            g.switch.store(1, Relaxed);
            let sent = g.send(&cursor, 2, 20, 1);
            assert!(g.close());
            (sent, g.drain(&Cursor::new(), 3).len())
        },
        &gate,
    );
    let (sent, got) = receiver.join().unwrap();
    gate.assert_drained(got, usize::from(sent) + usize::from(other.join().unwrap()));
}

/// A receiver that walks past another one's claim to the inside of a batch.
pub(crate) fn a_batch_behind_a_claim_against_a_close() {
    let gate = gate(4);
    let pushed = Cursor::new();
    assert!(gate.send(&pushed, 1, 10, 1));
    let other = join(
        move |g| {
            // Without a fence in between, which would be more than the claim has to pass on.
            let sent = g.push(&pushed, 1, 20, 2);
            (sent, g.world.pop_batch(&Cursor::new(), 2, 2).len())
        },
        &gate,
    );
    let receiver = join(
        |g| {
            assert!(g.close());
            g.drain(&Cursor::new(), 3).len()
        },
        &gate,
    );
    let got = receiver.join().unwrap();
    let (sent, other_got) = other.join().unwrap();
    gate.assert_drained(got + other_got, 1 + 2 * usize::from(sent));
}

/// A receiver that sleeps without a deadline over a claim that may be withdrawn.
pub(crate) fn a_withdrawn_claim_wakes_whoever_waits_for_it() {
    let gate = gate(1);
    let sender = join(|g| g.send(&Cursor::new(), 1, 10, 1), &gate);
    let closer = join(|g| assert!(g.close()), &gate);
    let cursor = Cursor::new();
    let mut got = 0;
    loop {
        let attempt = || gate.try_recv(&cursor, 2).ok();
        let taken = gate.not_empty.wait(&Pace::new(), cursor.ticket(), None, attempt, || None);
        match taken.expect("no deadline") {
            Some(_) => got += 1,
            None => break,
        }
    }
    closer.join().unwrap();
    gate.assert_drained(got, usize::from(sender.join().unwrap()));
}

const LOST: &str = "left behind";

/// Which model notices which weakened ordering, and as what.
pub(crate) const CONTROLS: &[(&str, fn(), &str)] = &[
    ("closing: seq_cst", a_send_against_a_close, LOST),
    ("closing: second look", a_send_without_a_second_look, LOST),
    ("closing: light_fence", a_withdrawn_claim_wakes_whoever_waits_for_it, STUCK),
    ("ring.pop.claim", a_batch_behind_a_claim_against_a_close, LOST),
    ("ring.cursor.set", sends_of_two_threads_against_a_close, LOST),
];
