//! A rayon thread pool, used from outside.

use super::{Contestant, next};
use crate::child::Result;
use crate::pin;
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

pub struct Rayon(ThreadPool);

impl Contestant for Rayon {
    fn start(workers: usize) -> Result<Self> {
        let builder = ThreadPoolBuilder::new().num_threads(workers);
        Ok(Self(builder.start_handler(|_| pin::as_worker()).build()?))
    }

    fn call(&self, x: u64) -> Result<u64> {
        Ok(self.0.install(|| next(x)))
    }

    fn map(&self, tasks: u64) -> Result<Vec<u64>> {
        let tasks = usize::try_from(tasks)?;
        Ok(self
            .0
            .install(|| (0..tasks).into_par_iter().map(|x| next(x as u64)).collect()))
    }

    fn map_chunk1(&self, tasks: u64) -> Result<Vec<u64>> {
        let tasks = usize::try_from(tasks)?;
        Ok(self.0.install(|| {
            (0..tasks)
                .into_par_iter()
                .with_max_len(1)
                .map(|x| next(x as u64))
                .collect()
        }))
    }
}
