//! `proc_pool::Pool`.

use super::{Contestant, next};
use crate::child::Result;

pub struct Ours(proc_pool::Pool);

impl Contestant for Ours {
    fn start(workers: usize) -> Result<Self> {
        Ok(Self(proc_pool::Pool::new(workers)?))
    }

    fn call(&self, x: u64) -> Result<u64> {
        Ok(self.0.call(next, x)?)
    }

    fn map(&self, tasks: u64) -> Result<Vec<u64>> {
        Ok(self.0.map(next, 0..tasks)?)
    }

    fn map_chunk1(&self, tasks: u64) -> Result<Vec<u64>> {
        Ok(self.0.job(next).chunk_size(1).map(0..tasks)?)
    }
}
