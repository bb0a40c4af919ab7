//! Handles of arrays as values: the bytes say which descriptor belongs to the handle and what the elements are.

use super::SharedArray;
use super::body::Body;
use super::geometry::element_hash;
use crate::error::{Error, Kind};
use bytemuck::Zeroable;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use shm_core::handle::{send_descriptor, take_descriptor};
use std::os::fd::AsFd;

/// A handle in bytes.
#[derive(Serialize, Deserialize)]
#[serde(rename = "SharedArrayHandle")]
struct Ticket {
    element: u64,
    /// The place in the session of the descriptor to attach by.
    descriptor: u32,
}

impl<T: Zeroable> Serialize for SharedArray<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Memory goes with the last descriptor, so an array stays while a handle is on its way.
        let copy = self.body.segment().descriptor().try_clone_to_owned().map_err(ser::Error::custom)?;
        let descriptor = send_descriptor(copy).map_err(ser::Error::custom)?;
        Ticket { element: element_hash::<T>(), descriptor }.serialize(serializer)
    }
}

impl<'de, T: Zeroable> Deserialize<'de> for SharedArray<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ticket = Ticket::deserialize(deserializer)?;
        let descriptor = take_descriptor(ticket.descriptor).map_err(de::Error::custom)?;
        if ticket.element != element_hash::<T>() {
            return Err(de::Error::custom(Error::from(Kind::Mismatch {
                what: "the type of an array's elements",
            })));
        }
        let body = Body::attach::<T>(descriptor.as_fd()).map_err(de::Error::custom)?;
        Ok(Self::of(body))
    }
}
