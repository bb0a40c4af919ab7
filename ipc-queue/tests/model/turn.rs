//! The steps of the ring model: what a process that is about to move does to the state.

use crate::ring::SlotState::{Free, Full, Reading, Tomb, Writing};
use crate::ring::{
    Control, MAX_SPAN, Message, Next, Participant, Payload, Process, Ring, SlotState, State, Ticket, Word,
};

/// What a step leads to: a state, nothing at all (blocked, or done), or a broken promise.
pub(crate) type Stepped = Result<Option<State>, &'static str>;

/// One process that is about to take a step in a state.
pub(crate) struct Turn<'a> {
    pub(crate) ring: &'a Ring,
    pub(crate) before: &'a State,
    pub(crate) after: State,
    pub(crate) me: usize,
}

impl Turn<'_> {
    fn participant(&mut self) -> &mut Participant {
        &mut self.after.participants[self.me]
    }

    fn has(&self, control: Control) -> bool {
        self.ring.control == Some(control)
    }

    fn slot(&self, ticket: Ticket) -> usize {
        usize::from(ticket % self.ring.capacity)
    }

    fn lap(&self, ticket: Ticket) -> u8 {
        ticket / self.ring.capacity
    }

    fn word(&self, ticket: Ticket) -> Word {
        self.before.words[self.slot(ticket)]
    }

    fn set(&mut self, ticket: Ticket, word: Word) {
        let slot = self.slot(ticket);
        self.after.words[slot] = word;
    }

    /// Makes `next` the next step of this process.
    fn then(mut self, next: Next) -> Stepped {
        self.participant().next = next;
        Ok(Some(self.after))
    }

    fn is_dead(&self, owner: Option<Process>) -> bool {
        owner.map(usize::from).is_some_and(|owner| {
            self.before.participants[owner].next == Next::Dead
                || (self.has(Control::Timeout) && owner != self.me)
        })
    }

    pub(crate) fn step(self) -> Stepped {
        let ticket = self.before.participants[self.me].ticket;
        match self.before.participants[self.me].next {
            Next::Dead | Next::Absent => Ok(None),
            Next::Look if self.me < self.ring.producers => self.look_for_room(ticket),
            Next::Look => self.look_for_message(ticket),
            Next::CheckFree { header, count, at } => self.check_free(ticket, header, count, at),
            Next::ClaimToWrite { header, count } => self.claim_to_write(ticket, header, count),
            Next::WriteFirstHalf { count } => self.write_first_half(ticket, count),
            Next::WriteSecondHalf { count } => self.write_second_half(ticket, count),
            Next::Publish { count, at } => self.publish(ticket, count, at),
            Next::PublishHeader { count } => self.publish_header(ticket, count),
            Next::CheckFull { header, count, at } => self.check_full(ticket, header, count, at),
            Next::ClaimToRead { header, count } => self.claim_to_read(ticket, header, count),
            Next::Read { count } => self.read(ticket, count),
            Next::Release { count, at } => self.release(ticket, count, at),
            Next::ReleaseHeader { count } => self.release_header(ticket, count),
            Next::FreeTomb { seen } => self.free_tomb(ticket, seen),
            Next::Ask { first, header } => self.ask(first, header),
            Next::LookAgain { first, header } => self.look_again(first, header),
            Next::RecoverLook { first, header, at } => self.recover_look(first, header, at),
            Next::RecoverSwap { first, header, at, seen } => self.recover_swap(first, header, at, seen),
            Next::RecoverHeader { first, header } => self.recover_header(first, header),
            Next::TakeBack => self.take_back(ticket),
        }
    }

    // Producer.

    fn look_for_room(mut self, ticket: Ticket) -> Stepped {
        let left = self.ring.messages - self.before.participants[self.me].sent;
        if left == 0 {
            return Ok(None);
        }
        let (word, lap) = (self.word(ticket), self.lap(ticket));
        if word.is(lap, Free) {
            let count = self.ring.push_span.min(left);
            return if count > 1 && !self.has(Control::NoInteriorCheck) {
                self.then(Next::CheckFree { header: word, count, at: 1 })
            } else {
                self.then(Next::ClaimToWrite { header: word, count })
            };
        }
        if word.lap >= lap {
            self.participant().ticket = self.producer_skip(ticket, word);
            return self.then(Next::Look);
        }
        if self.may_recover(word) {
            return self.meet_claim(ticket, word);
        }
        if self.ring.producers_free_tombs {
            if word.state == Tomb && !self.has(Control::TombsCountAsFull) {
                return self.then(Next::FreeTomb { seen: word });
            }
            let words = &self.before.words[..usize::from(self.ring.capacity)];
            if words.iter().all(|word| matches!(word.state, Free | Tomb)) {
                return Err("full, and yet nothing is queued or claimed");
            }
        }
        Ok(None)
    }

    /// The next ticket worth trying after seeing that `ticket` is taken.
    fn producer_skip(&self, ticket: Ticket, word: Word) -> Ticket {
        let laps_ahead = word.lap - self.lap(ticket);
        if laps_ahead == 0 {
            return ticket + word.span;
        }
        let span = if self.has(Control::JumpIgnoresSpan) { 1 } else { word.span };
        // A slot that is FREE at lap L' was taken up to lap L' - 1.
        let not_taken = u8::from(word.state == Free && !self.has(Control::FreeCountsAsTaken));
        ticket + (laps_ahead - not_taken) * self.ring.capacity + span
    }

    fn check_free(self, ticket: Ticket, header: Word, count: u8, at: u8) -> Stepped {
        let is_free = at < self.ring.capacity && self.word(ticket + at).is(self.lap(ticket + at), Free);
        match (is_free, at + 1 == count) {
            (true, false) => self.then(Next::CheckFree { header, count, at: at + 1 }),
            (true, true) => self.then(Next::ClaimToWrite { header, count }),
            (false, _) if self.ring.whole_batches => self.then(Next::Look),
            (false, _) => self.then(Next::ClaimToWrite { header, count: at }),
        }
    }

    fn claim_to_write(mut self, ticket: Ticket, header: Word, count: u8) -> Stepped {
        if self.word(ticket) != header {
            return self.then(Next::Look);
        }
        let claim = Word { lap: header.lap, state: Writing, span: count, owner: Some(self.name()) };
        self.set(ticket, claim);
        self.then(Next::WriteFirstHalf { count })
    }

    fn write_first_half(mut self, ticket: Ticket, count: u8) -> Stepped {
        for at in 0..count {
            let slot = self.slot(ticket + at);
            self.after.payloads[slot] = Payload::Torn;
        }
        self.then(Next::WriteSecondHalf { count })
    }

    fn write_second_half(mut self, ticket: Ticket, count: u8) -> Stepped {
        for at in 0..count {
            let slot = self.slot(ticket + at);
            self.after.payloads[slot] = Payload::Message(self.own_message(at));
        }
        if count == 1 || self.has(Control::PublishHeaderFirst) {
            return self.then(Next::PublishHeader { count });
        }
        let at = if self.has(Control::PublishForward) { 1 } else { count - 1 };
        self.then(Next::Publish { count, at })
    }

    fn publish(mut self, ticket: Ticket, count: u8, at: u8) -> Stepped {
        let lap = self.lap(ticket + at);
        if self.word(ticket + at) != Word::unowned(lap, Free) {
            return Err("a slot behind a batch header is published over somebody else's");
        }
        self.set(ticket + at, Word::unowned(lap, Full));
        match self.following(Control::PublishForward, count, at) {
            Some(at) => self.then(Next::Publish { count, at }),
            None if self.has(Control::PublishHeaderFirst) => self.sent(count),
            None => self.then(Next::PublishHeader { count }),
        }
    }

    /// The slot of a batch that comes after `at`: the one before it, unless `forward` is the control.
    fn following(&self, forward: Control, count: u8, at: u8) -> Option<u8> {
        let next = if self.has(forward) { at + 1 } else { at - 1 };
        (1..count).contains(&next).then_some(next)
    }

    fn publish_header(mut self, ticket: Ticket, count: u8) -> Stepped {
        if !self.is_own_claim(ticket, Writing, count) {
            return Err("a message is published over somebody else's slot");
        }
        self.set(ticket, Word::unowned(self.lap(ticket), Full));
        for at in 0..count {
            let message = self.own_message(at);
            self.after.acknowledged.add(message);
        }
        if count > 1 && self.has(Control::PublishHeaderFirst) {
            return self.then(Next::Publish { count, at: count - 1 });
        }
        self.sent(count)
    }

    fn sent(mut self, count: u8) -> Stepped {
        let participant = self.participant();
        participant.sent += count;
        participant.ticket += count;
        self.then(Next::Look)
    }

    fn own_message(&self, at: u8) -> Message {
        Message { producer: self.name(), number: self.before.participants[self.me].sent + at }
    }

    // Consumer.

    fn look_for_message(mut self, ticket: Ticket) -> Stepped {
        let (word, lap) = (self.word(ticket), self.lap(ticket));
        if word.is(lap, Full) {
            return match self.ring.pop_span {
                1 => self.then(Next::ClaimToRead { header: word, count: 1 }),
                count => self.then(Next::CheckFull { header: word, count, at: 1 }),
            };
        }
        if word.is(lap, Tomb) {
            return self.then(Next::FreeTomb { seen: word });
        }
        let walks_past = self.ring.late_oracle && word.is(lap, Reading);
        if word.lap <= lap && !walks_past && self.may_recover(word) {
            return self.meet_claim(ticket, word);
        }
        if word.lap > lap || word.is(lap, Reading) {
            self.participant().ticket = self.consumer_skip(ticket, word);
            return self.then(Next::Look);
        }
        Ok(None)
    }

    /// The next ticket worth trying after seeing that `ticket` is consumed.
    fn consumer_skip(&self, ticket: Ticket, word: Word) -> Ticket {
        if self.has(Control::ConsumerSkipsLikeProducer) {
            return self.producer_skip(ticket, word);
        }
        let laps_ahead = word.lap - self.lap(ticket);
        if laps_ahead == 0 {
            return ticket + word.span;
        }
        let span = if self.has(Control::JumpIgnoresSpan) { 1 } else { word.span };
        // A slot at lap L' that is not READING there was consumed up to lap L' - 1 only.
        match word.state {
            Reading => ticket + laps_ahead * self.ring.capacity + span,
            _ => ticket + (laps_ahead - 1) * self.ring.capacity + 1,
        }
    }

    fn check_full(self, ticket: Ticket, header: Word, count: u8, at: u8) -> Stepped {
        let is_full = at < self.ring.capacity && self.word(ticket + at).is(self.lap(ticket + at), Full);
        match (is_full, at + 1 == count) {
            (true, false) => self.then(Next::CheckFull { header, count, at: at + 1 }),
            (true, true) => self.then(Next::ClaimToRead { header, count }),
            (false, _) => self.then(Next::ClaimToRead { header, count: at }),
        }
    }

    fn claim_to_read(mut self, ticket: Ticket, header: Word, count: u8) -> Stepped {
        if self.word(ticket) != header {
            return self.then(Next::Look);
        }
        let claim = Word { lap: header.lap, state: Reading, span: count, owner: Some(self.name()) };
        self.set(ticket, claim);
        for at in 0..count {
            let Payload::Message(message) = self.before.payloads[self.slot(ticket + at)] else {
                return Err("a torn message is claimed");
            };
            if !self.before.acknowledged.has(message) {
                return Err("a message is claimed whose batch is not published");
            }
            if self.before.taken_back.has(message) {
                return Err("a message is claimed that was taken back");
            }
            let expected = &mut self.after.expected[usize::from(message.producer)];
            if message.number < *expected {
                return Err("a message is claimed twice or out of order");
            }
            *expected = message.number + 1;
            self.participant().claimed[usize::from(at)] = Some(message);
        }
        self.then(Next::Read { count })
    }

    fn read(self, ticket: Ticket, count: u8) -> Stepped {
        for (at, message) in (0..).zip(self.claimed()) {
            if self.before.payloads[self.slot(ticket + at)] != Payload::Message(message) {
                return Err("a payload changes under its reader");
            }
            if self.before.taken_back.has(message) {
                return Err("a message is taken back while its consumer owns it");
            }
        }
        if count == 1 {
            return self.then(Next::ReleaseHeader { count });
        }
        let at = if self.has(Control::FreeForward) { 1 } else { count - 1 };
        self.then(Next::Release { count, at })
    }

    fn release(mut self, ticket: Ticket, count: u8, at: u8) -> Stepped {
        let lap = self.lap(ticket + at);
        if self.word(ticket + at) != Word::unowned(lap, Full) {
            return Err("a slot behind a batch header is released over somebody else's");
        }
        self.set(ticket + at, Word::unowned(lap + 1, Free));
        match self.following(Control::FreeForward, count, at) {
            Some(at) => self.then(Next::Release { count, at }),
            None => self.then(Next::ReleaseHeader { count }),
        }
    }

    fn release_header(mut self, ticket: Ticket, count: u8) -> Stepped {
        if !self.is_own_claim(ticket, Reading, count) {
            return Err("a message is released over somebody else's slot");
        }
        self.set(ticket, Word::unowned(self.lap(ticket) + 1, Free));
        for message in self.claimed() {
            if !self.after.delivered.add(message) {
                return Err("a message is delivered twice");
            }
        }
        let participant = self.participant();
        participant.claimed = [None; MAX_SPAN];
        participant.ticket += count;
        self.then(Next::Look)
    }

    fn claimed(&self) -> impl Iterator<Item = Message> + use<> {
        self.before.participants[self.me].claimed.into_iter().flatten()
    }

    // Both.

    fn name(&self) -> Process {
        Process::try_from(self.me).expect("a model has few processes")
    }

    fn is_own_claim(&self, ticket: Ticket, state: SlotState, span: u8) -> bool {
        let claim = Word { lap: self.lap(ticket), state, span, owner: Some(self.name()) };
        self.word(ticket) == claim
    }

    /// A consumer frees a tomb and goes on behind it; a producer frees the tomb of the lap before and stays.
    fn free_tomb(mut self, ticket: Ticket, seen: Word) -> Stepped {
        if self.word(ticket) == seen {
            self.set(ticket, Word::unowned(seen.lap + 1, Free));
            if self.me >= self.ring.producers {
                let steps = if self.has(Control::TombKeepsSpan) { seen.span } else { 1 };
                self.participant().ticket += steps;
            }
        }
        self.then(Next::Look)
    }

    /// Whether to think about recovery after a look at `word`.
    fn may_recover(&self, word: Word) -> bool {
        word.is_claimed() && (self.ring.late_oracle || self.is_dead(word.owner))
    }

    /// The word seen at `ticket` is claimed. It may belong to the lap before.
    fn meet_claim(self, ticket: Ticket, header: Word) -> Stepped {
        let slot = ticket % self.ring.capacity;
        let first = header.lap * self.ring.capacity + slot;
        match self.ring.late_oracle {
            true => self.then(Next::Ask { first, header }),
            false => self.recover(first, header),
        }
    }

    fn ask(self, first: Ticket, header: Word) -> Stepped {
        match self.is_dead(header.owner) {
            true if self.has(Control::NoSecondLook) => self.recover(first, header),
            true => self.then(Next::LookAgain { first, header }),
            false => self.then(Next::Look),
        }
    }

    fn look_again(self, first: Ticket, header: Word) -> Stepped {
        match self.word(first) == header {
            true => self.recover(first, header),
            false => self.then(Next::Look),
        }
    }

    /// The owner of the batch claimed at ticket `first` is dead.
    fn recover(self, first: Ticket, header: Word) -> Stepped {
        if self.has(Control::NoRecovery) {
            return self.then(Next::Look);
        }
        let is_header_only = header.span == 1
            || match header.state {
                Writing => self.has(Control::TombHeaderOnly) || self.has(Control::TombKeepsSpan),
                _ => self.has(Control::ReleaseHeaderOnly),
            };
        if is_header_only {
            return self.then(Next::RecoverHeader { first, header });
        }
        self.then(Next::RecoverLook { first, header, at: header.span - 1 })
    }

    fn recover_look(self, first: Ticket, header: Word, at: u8) -> Stepped {
        let seen = self.word(first + at);
        let belongs = seen.lap == self.lap(first + at);
        let is_tombed = header.state == Writing && seen.state == Tomb;
        if belongs && !is_tombed {
            return self.then(Next::RecoverSwap { first, header, at, seen });
        }
        self.recover_before(first, header, at)
    }

    fn recover_swap(mut self, first: Ticket, header: Word, at: u8, seen: Word) -> Stepped {
        if self.word(first + at) != seen {
            return self.then(Next::RecoverLook { first, header, at });
        }
        let word = match header.state {
            Writing => Word::unowned(seen.lap, Tomb),
            _ => Word::unowned(seen.lap + 1, Free),
        };
        self.set(first + at, word);
        self.recover_before(first, header, at)
    }

    /// Recovery goes from the last slot of a batch to the first.
    fn recover_before(self, first: Ticket, header: Word, at: u8) -> Stepped {
        match at {
            1 => self.then(Next::RecoverHeader { first, header }),
            _ => self.then(Next::RecoverLook { first, header, at: at - 1 }),
        }
    }

    fn recover_header(mut self, first: Ticket, header: Word) -> Stepped {
        if self.word(first) == header {
            let word = match header.state {
                Writing if self.has(Control::TombKeepsSpan) => {
                    Word { span: header.span, ..Word::unowned(header.lap, Tomb) }
                }
                Writing => Word::unowned(header.lap, Tomb),
                _ => Word::unowned(header.lap + 1, Free),
            };
            self.set(first, word);
        }
        self.then(Next::Look)
    }

    fn take_back(mut self, ticket: Ticket) -> Stepped {
        let full = Word::unowned(self.lap(ticket), Full);
        if self.word(ticket) != full {
            return Ok(None);
        }
        if let Payload::Message(message) = self.before.payloads[self.slot(ticket)] {
            self.after.taken_back.add(message);
        }
        self.set(ticket, Word { state: Tomb, ..full });
        self.then(Next::Absent)
    }
}
