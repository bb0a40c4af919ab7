//! `procspawn::Pool`: processes behind `ipc_channel`.

use super::{Contestant, next};
use crate::child::Result;

pub struct Procspawn(procspawn::Pool);

impl Contestant for Procspawn {
    fn start(workers: usize) -> Result<Self> {
        Ok(Self(procspawn::Pool::new(workers)?))
    }

    fn call(&self, x: u64) -> Result<u64> {
        Ok(self.0.spawn(x, next).join()?)
    }
}
