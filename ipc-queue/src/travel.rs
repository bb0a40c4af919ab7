//! Handles are values: how a sender or receiver is serialised into another process.
//!
//! The bytes say which descriptor of the session belongs to the handle, and what both ends must agree on. The
//! descriptor is the token that keeps the handle's side alive while it is on its way (see
//! [`disconnect`](crate::disconnect)), and the segment to attach to.

use crate::end::{End, Shape};
use crate::layout::Side;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use shm_core::SegmentError;
use shm_core::handle::{MissingDescriptor, NoSession, send_descriptor, take_descriptor};
use std::fmt;
use std::os::fd::AsFd;

/// A handle in bytes.
#[derive(Serialize, Deserialize)]
#[serde(rename = "QueueHandle")]
struct Ticket {
    /// [`Side::lane`] of the handle.
    side: u8,
    /// [`Transfer::LAYOUT`](crate::codec::Transfer::LAYOUT) of its codec.
    layout: u64,
    /// The token's place in the session.
    descriptor: u32,
}

/// Why a handle did not leave or arrive.
#[derive(Debug)]
pub(crate) enum Refused {
    NoSession(NoSession),
    Missing(MissingDescriptor),
    Segment(SegmentError),
    /// A sender where a receiver should be, or the other way round.
    Side,
    /// A queue of other messages.
    Layout,
    /// The segment's geometry does not fit its length.
    Geometry,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSession(error) => error.fmt(f),
            Self::Missing(error) => error.fmt(f),
            Self::Segment(error) => write!(f, "attaching to a queue: {error}"),
            Self::Side => {
                f.write_str("a sender arrived where a receiver was expected, or the other way round")
            }
            Self::Layout => f.write_str("a queue arrived whose messages have another codec, kind or size"),
            Self::Geometry => f.write_str("a queue arrived whose geometry does not fit its memory"),
        }
    }
}

impl End {
    fn leave(&self, shape: &Shape) -> Result<Ticket, Refused> {
        self.check().map_err(|forked| Refused::Segment(forked.into()))?;
        let token = self.segment().token(self.side().lane().into()).map_err(Refused::Segment)?;
        let descriptor = send_descriptor(token).map_err(Refused::NoSession)?;
        self.control().advance_epoch();
        Ok(Ticket { side: self.side().lane(), layout: shape.layout, descriptor })
    }

    fn arrive(ticket: &Ticket, shape: &Shape, side: Side) -> Result<Self, Refused> {
        let token = take_descriptor(ticket.descriptor).map_err(Refused::Missing)?;
        if ticket.side != side.lane() {
            return Err(Refused::Side);
        }
        if ticket.layout != shape.layout {
            return Err(Refused::Layout);
        }
        let end = Self::attach(token.as_fd(), shape, side)?;
        end.control().advance_epoch();
        drop(token);
        Ok(end)
    }

    pub(crate) fn serialize<S: Serializer>(&self, shape: &Shape, serializer: S) -> Result<S::Ok, S::Error> {
        let ticket = self.leave(shape).map_err(ser::Error::custom)?;
        ticket.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
        shape: &Shape,
        side: Side,
    ) -> Result<Self, D::Error> {
        let ticket = Ticket::deserialize(deserializer)?;
        Self::arrive(&ticket, shape, side).map_err(de::Error::custom)
    }
}
