//! The books of a broker: which deposits there are, and who is fetching what. Pure: it takes events and says what is to
//! be done; it opens no descriptor and reads no clock.
//!
//! ```text
//! deposit   PENDING --leave--> LEFT
//!           withdrawn while PENDING; taken, acknowledged or discarded: gone
//! visitor   ASKING --ask--> LENT(key) --acknowledge--> gone, and the deposit with it
//!           ended or late: gone, and the deposit is as it was
//! ```
//!
//! A deposit that is lent has been sent to a visitor who has not said yet that it arrived. Only then is it given up, so
//! a visitor that dies or gives up in between leaves it to the next one.
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// Visitors at a time. More of them wait in the socket's queue.
pub(super) const MAX_VISITORS: usize = 64;
/// How long a visit may take.
pub(super) const VISIT: Duration = Duration::from_secs(5);

/// What a visitor has to know; nobody can guess it.
pub(super) type Key = [u8; 16];

/// `G` is what is deposited, `K` what tells whether it is still wanted, `L` the line to a visitor.
#[derive(Debug)]
pub(super) struct Table<G, K, L> {
    deposits: HashMap<Key, Deposit<G, K>>,
    /// Pieces in all deposits.
    pieces: usize,
    /// By age.
    visitors: BTreeMap<u64, Visitor<L>>,
    next_visitor: u64,
}

#[derive(Debug)]
struct Deposit<G, K> {
    goods: G,
    pieces: usize,
    /// Nothing while the depositor may still withdraw it.
    keeper: Option<K>,
    lent: bool,
}

#[derive(Debug)]
struct Visitor<L> {
    line: L,
    deadline: Instant,
    lent: Option<Key>,
}

/// What leaves the books: the goods, and the keeper that was to look after them. Neither is dropped in here: whoever has
/// the books locked drops them afterwards.
type Removed<G, K> = (G, Option<K>);

/// What a visitor gets for what it said.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply<'t, G, L> {
    /// Send it these.
    Lend(&'t L, &'t G),
    /// Tell it that there is nothing under its key.
    Unknown(&'t L),
    /// It breaks the rules, or nobody knows it: hang up.
    HangUp,
}

impl<G, K: Clone, L> Table<G, K, L> {
    pub(super) fn new() -> Self {
        Self { deposits: HashMap::new(), pieces: 0, visitors: BTreeMap::new(), next_visitor: 0 }
    }

    /// How many pieces are deposited.
    pub(super) fn pieces(&self) -> usize {
        self.pieces
    }

    pub(super) fn is_empty(&self) -> bool {
        self.deposits.is_empty()
    }

    /// Takes goods in.
    pub(super) fn deposit(&mut self, key: Key, goods: G, pieces: usize) {
        self.pieces = self.pieces.saturating_add(pieces);
        let before = self.deposits.insert(key, Deposit { goods, pieces, keeper: None, lent: false });
        debug_assert!(before.is_none(), "keys are drawn at random");
    }

    /// A deposit, to look at.
    pub(super) fn goods(&self, key: &Key) -> Option<&G> {
        self.deposits.get(key).map(|deposit| &deposit.goods)
    }

    /// The depositor gives up: returns what nobody will fetch. Nothing if it had left the deposit here with a keeper.
    pub(super) fn withdraw(&mut self, key: &Key) -> Option<G> {
        let pending = self.deposits.get(key).is_some_and(|deposit| deposit.keeper.is_none());
        if pending { self.remove(key).map(|(goods, _)| goods) } else { None }
    }

    /// The depositor leaves the deposit here, until it is fetched or `keeper` says that nobody will. Returns the keeper
    /// if it has been fetched already.
    pub(super) fn leave(&mut self, key: &Key, keeper: K) -> Option<K> {
        match self.deposits.get_mut(key) {
            Some(deposit) => deposit.keeper.replace(keeper),
            None => Some(keeper),
        }
    }

    /// Gives a deposit away at once, without a visitor. Nothing if it is not there or lent.
    pub(super) fn take(&mut self, key: &Key) -> Option<Removed<G, K>> {
        let here = self.deposits.get(key).is_some_and(|deposit| !deposit.lent);
        if here { self.remove(key) } else { None }
    }

    /// The deposits that somebody might not want any more.
    pub(super) fn kept(&self) -> Vec<(Key, K)> {
        let left = self.deposits.iter().filter(|(_, deposit)| !deposit.lent);
        left.filter_map(|(key, deposit)| Some((*key, deposit.keeper.clone()?))).collect()
    }

    fn remove(&mut self, key: &Key) -> Option<Removed<G, K>> {
        let deposit = self.deposits.remove(key)?;
        self.pieces = self.pieces.saturating_sub(deposit.pieces);
        Some((deposit.goods, deposit.keeper))
    }

    /// Whether one more visitor may come in.
    pub(super) fn has_room(&self) -> bool {
        self.visitors.len() < MAX_VISITORS
    }

    /// A visitor comes in.
    pub(super) fn arrive(&mut self, line: L, now: Instant) {
        // A deadline beyond the end of time never comes; the clock does not get there.
        let deadline = now.checked_add(VISIT).unwrap_or(now);
        self.visitors.insert(self.next_visitor, Visitor { line, deadline, lent: None });
        self.next_visitor = self.next_visitor.wrapping_add(1);
    }

    /// Who is here, the oldest first.
    pub(super) fn visitors(&self) -> impl Iterator<Item = (u64, &L)> {
        self.visitors.iter().map(|(visitor, visit)| (*visitor, &visit.line))
    }

    /// A visitor asks for a deposit.
    pub(super) fn ask(&mut self, visitor: u64, key: &Key) -> Reply<'_, G, L> {
        let Some(visit) = self.visitors.get_mut(&visitor).filter(|visit| visit.lent.is_none()) else {
            return Reply::HangUp;
        };
        match self.deposits.get_mut(key).filter(|deposit| !deposit.lent) {
            Some(deposit) => {
                deposit.lent = true;
                visit.lent = Some(*key);
                Reply::Lend(&visit.line, &deposit.goods)
            }
            None => Reply::Unknown(&visit.line),
        }
    }

    /// A visitor says that what it was lent has arrived, and goes. Returns what is its now, and its line.
    pub(super) fn acknowledge(&mut self, visitor: u64) -> (Option<Removed<G, K>>, Option<L>) {
        let Some(visit) = self.visitors.remove(&visitor) else {
            return (None, None);
        };
        let given = visit.lent.and_then(|key| self.remove(&key));
        (given, Some(visit.line))
    }

    /// A visitor goes, or is sent away, without having said so. Returns its line.
    pub(super) fn end(&mut self, visitor: u64) -> Option<L> {
        let visit = self.visitors.remove(&visitor)?;
        if let Some(deposit) = visit.lent.and_then(|key| self.deposits.get_mut(&key)) {
            deposit.lent = false;
        }
        Some(visit.line)
    }

    /// Visitors who have been here for too long.
    pub(super) fn late(&self, now: Instant) -> Vec<u64> {
        let late = self.visitors.iter().filter(|(_, visit)| visit.deadline <= now);
        late.map(|(visitor, _)| *visitor).collect()
    }

    /// When the next visitor will have been here for too long.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.visitors.values().map(|visit| visit.deadline).min()
    }

    /// Everything that has to be closed in a process that is not the broker's. The keepers stay: their end may need
    /// more than a forked child can do at once.
    pub(super) fn abandon(&mut self) -> (Vec<G>, Vec<L>) {
        let (mut goods, mut keepers) = (Vec::new(), Vec::new());
        for (_, deposit) in self.deposits.drain() {
            goods.push(deposit.goods);
            keepers.extend(deposit.keeper);
        }
        std::mem::forget(keepers);
        self.pieces = 0;
        let lines = std::mem::take(&mut self.visitors).into_values().map(|visit| visit.line);
        (goods, lines.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goods, keepers and lines are numbers.
    type Numbers = Table<u32, u32, u32>;

    const KEY: Key = [1; 16];
    const OTHER: Key = [2; 16];

    /// One deposit of 3 pieces under `KEY`, left here; visitors 0 and 1 with lines 70 and 71.
    fn example() -> Numbers {
        let (mut table, now) = (Table::new(), Instant::now());
        table.deposit(KEY, 5, 3);
        assert_eq!(table.leave(&KEY, 9), None);
        table.arrive(70, now);
        table.arrive(71, now);
        table
    }

    #[test]
    fn a_deposit_is_given_up_when_its_arrival_is_acknowledged() {
        let mut table = example();
        assert_eq!(table.ask(0, &KEY), Reply::Lend(&70, &5));
        assert_eq!(table.pieces(), 3);
        assert_eq!(table.acknowledge(0), (Some((5, Some(9))), Some(70)));
        assert_eq!((table.pieces(), table.is_empty()), (0, true));
        assert_eq!(table.ask(1, &KEY), Reply::Unknown(&71));
    }

    #[test]
    fn what_was_lent_to_somebody_who_went_is_there_for_the_next() {
        let mut table = example();
        assert_eq!(table.ask(0, &KEY), Reply::Lend(&70, &5));
        assert_eq!(table.ask(1, &KEY), Reply::Unknown(&71), "nothing is lent twice");
        assert_eq!(table.take(&KEY), None);
        assert_eq!(table.end(0), Some(70));
        assert_eq!(table.ask(1, &KEY), Reply::Lend(&71, &5));
    }

    #[test]
    fn a_wrong_key_gets_nothing() {
        let mut table = example();
        assert_eq!(table.ask(0, &OTHER), Reply::Unknown(&70));
        assert_eq!(table.acknowledge(0), (None, Some(70)));
        assert_eq!(table.take(&OTHER), None);
        assert_eq!(table.pieces(), 3);
    }

    #[test]
    fn a_visitor_gets_one_deposit() {
        let mut table = example();
        table.deposit(OTHER, 6, 1);
        assert_eq!(table.ask(0, &KEY), Reply::Lend(&70, &5));
        assert_eq!(table.ask(0, &OTHER), Reply::HangUp);
        assert_eq!(table.ask(7, &OTHER), Reply::HangUp, "nobody knows visitor 7");
    }

    #[test]
    fn what_was_not_left_can_be_withdrawn() {
        let mut table = Numbers::new();
        table.deposit(KEY, 5, 3);
        assert!(table.kept().is_empty());
        assert_eq!(table.withdraw(&KEY), Some(5));
        assert_eq!(table.pieces(), 0);
        assert_eq!(example().withdraw(&KEY), None, "it was left");
    }

    #[test]
    fn what_was_fetched_before_it_was_left_needs_no_keeper() {
        let mut table = Numbers::new();
        table.deposit(KEY, 5, 3);
        assert_eq!(table.take(&KEY), Some((5, None)));
        assert_eq!(table.leave(&KEY, 9), Some(9));
        assert!(table.is_empty());
    }

    #[test]
    fn what_is_lent_is_not_looked_at() {
        let mut table = example();
        assert_eq!(table.kept(), [(KEY, 9)]);
        table.ask(0, &KEY);
        assert!(table.kept().is_empty());
    }

    #[test]
    fn a_visit_ends_in_time() {
        let (mut table, start) = (example(), Instant::now());
        let deadline = table.deadline().expect("two visitors");
        assert!(deadline <= start + VISIT);
        assert!(table.late(start).is_empty());
        assert_eq!(table.late(start + VISIT), [0, 1]);
        table.end(0);
        assert_eq!(table.late(start + VISIT), [1]);
    }

    #[test]
    fn visitors_are_limited() {
        let (mut table, now) = (Numbers::new(), Instant::now());
        (0..64).for_each(|line| table.arrive(line, now));
        assert!(!table.has_room());
        table.end(3);
        assert!(table.has_room());
    }

    #[test]
    fn everything_can_be_abandoned() {
        let mut table = example();
        assert_eq!(table.abandon(), (vec![5], vec![70, 71]));
        assert_eq!((table.pieces(), table.is_empty(), table.visitors().count()), (0, true, 0));
    }
}
