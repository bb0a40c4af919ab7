//! Ends are values: how one is serialised into another process. As in [`travel`](crate::travel), and the seat is given up.

use super::end::{End, Site, Unseated};
use crate::codec::Format;
use crate::error::TAKEN;
use crate::travel::Refused;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use shm_core::fork::Forked;
use shm_core::handle::{send_descriptor, take_descriptor};
use std::fmt;
use std::os::fd::AsFd;

/// An end in bytes.
#[derive(Serialize, Deserialize)]
#[serde(rename = "QueueEnd")]
struct Ticket {
    /// [`Side::lane`](crate::layout::Side::lane) of the end.
    side: u8,
    /// The layout of its codec.
    layout: u64,
    /// The token's place in the session.
    descriptor: u32,
}

/// Why an end did not leave or arrive.
enum Stranded {
    Refused(Refused),
    Taken,
}

impl From<Refused> for Stranded {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<Unseated> for Stranded {
    fn from(unseated: Unseated) -> Self {
        match unseated {
            Unseated::Forked => Self::Refused(Refused::Segment(Forked.into())),
            Unseated::Taken => Self::Taken,
        }
    }
}

impl fmt::Display for Stranded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refused) => refused.fmt(f),
            Self::Taken => f.write_str(TAKEN),
        }
    }
}

impl<S: Site> End<S> {
    fn leave<T, C: Format<T>>(&self) -> Result<Ticket, Stranded> {
        self.hand_on(|| {
            let side = S::SIDE.lane();
            let token = self.member().segment().token(side.into()).map_err(Refused::Segment)?;
            let descriptor = send_descriptor(token).map_err(Refused::NoSession)?;
            self.member().control().advance_epoch();
            Ok(Ticket { side, layout: C::LAYOUT, descriptor })
        })
    }

    fn arrive<T, C: Format<T>>(ticket: &Ticket) -> Result<Self, Stranded> {
        let token = take_descriptor(ticket.descriptor).map_err(Refused::Missing)?;
        if ticket.side != S::SIDE.lane() {
            return Err(Refused::Side.into());
        }
        if ticket.layout != C::LAYOUT {
            return Err(Refused::Layout.into());
        }
        let end = Self::attach::<T, C>(token.as_fd())??;
        end.member().control().advance_epoch();
        drop(token);
        Ok(end)
    }

    pub(super) fn serialize<T, C: Format<T>, Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        let ticket = self.leave::<T, C>().map_err(ser::Error::custom)?;
        ticket.serialize(serializer)
    }

    pub(super) fn deserialize<'de, T, C: Format<T>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Self, D::Error> {
        let ticket = Ticket::deserialize(deserializer)?;
        Self::arrive::<T, C>(&ticket).map_err(de::Error::custom)
    }
}
