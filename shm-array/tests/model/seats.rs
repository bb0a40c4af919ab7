//! Participant indices with generations, and their deaths: what the registry of a segment gives to every lock.

/// The most participants of a model.
pub(crate) const MAX: usize = 4;

/// Whoever takes a lock writes this: a participant index, and how often it was issued before.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Token {
    pub(crate) index: u8,
    pub(crate) generation: u8,
}

/// Who lives. An index whose process died can be issued again, to a process that knows nothing of the first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Seats {
    dead: [bool; MAX],
    generations: [u8; MAX],
    crashes_left: u8,
    reissues_left: u8,
}

impl Seats {
    pub(crate) fn new(crashes: u8, reissues: u8) -> Self {
        Self { dead: [false; MAX], generations: [0; MAX], crashes_left: crashes, reissues_left: reissues }
    }

    pub(crate) fn token(&self, me: usize) -> Token {
        Token { index: u8::try_from(me).expect("few"), generation: self.generations[me] }
    }

    pub(crate) fn lives(&self, me: usize) -> bool {
        !self.dead[me]
    }

    /// The death oracle: exact, and it tells the holders of an index apart.
    pub(crate) fn is_dead(&self, token: Token) -> bool {
        self.is_unoccupied(token) || self.generations[usize::from(token.index)] != token.generation
    }

    /// What an oracle would say that ignored generations.
    pub(crate) fn is_unoccupied(&self, token: Token) -> bool {
        self.dead[usize::from(token.index)]
    }

    /// After the death of `me`, if there may be one.
    pub(crate) fn death(mut self, me: usize) -> Option<Self> {
        if self.dead[me] || self.crashes_left == 0 {
            return None;
        }
        self.dead[me] = true;
        self.crashes_left -= 1;
        Some(self)
    }

    /// After the index of the dead `me` was issued again, if that may happen.
    pub(crate) fn reissue(mut self, me: usize) -> Option<Self> {
        if !self.dead[me] || self.reissues_left == 0 {
            return None;
        }
        self.dead[me] = false;
        self.generations[me] += 1;
        self.reissues_left -= 1;
        Some(self)
    }
}
