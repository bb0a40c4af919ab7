//! The lock of an array whose elements are whole at any moment, whoever dies.

use super::SharedArray;
use super::holds::{Holds, Mode, Refused, Wait, without};
use crate::lock::LockError;

/// Keeps those out who ask for the same, until it is dropped.
pub(crate) struct Exclusion<'a>(Holds<'a>);

impl Exclusion<'_> {
    /// Whether this is still the process that asked.
    pub(crate) fn is_here(&self) -> bool {
        self.0.is_here()
    }
}

impl<T> SharedArray<T> {
    /// Takes the lock of the first chunk. Blocks until it is free or its holder died; of a death or a panic nobody is told.
    pub(crate) fn exclude(&self) -> Result<Exclusion<'_>, LockError<()>> {
        loop {
            let holds = match self.body.lock(0..1, Mode::Write, Wait::Forever) {
                Ok((holds, _)) => holds,
                // Nobody leaves it so, except by scribbling.
                Err(Refused::Unrecoverable) => match self.body.renew(0) {
                    Ok(holds) => holds,
                    Err(_) => continue,
                },
                Err(refused) => return Err(without(refused)),
            };
            holds.mark_consistent();
            return Ok(Exclusion(holds));
        }
    }
}
