//! A model never forks.

use super::Forked;

/// The process in which something was attached.
#[derive(Clone, Copy, Debug, Default)]
pub struct ForkStamp(());

impl ForkStamp {
    /// The present process.
    pub fn now() -> Self {
        Self(())
    }

    /// Whether this is still the process of the stamp: always.
    ///
    /// # Errors
    ///
    /// Never, in a model.
    pub fn check(&self) -> Result<(), Forked> {
        Ok(())
    }
}
