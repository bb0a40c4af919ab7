//! Every system call of this crate, and nothing else.

#[cfg(not(target_os = "linux"))]
compile_error!("shm-core supports Linux only: its death oracle needs open-file-description locks and memfd");

#[cfg(not(loom))]
pub(crate) mod files;
#[cfg(not(loom))]
mod linux;
#[cfg(not(loom))]
pub(crate) mod names;
#[cfg(not(loom))]
pub(crate) use linux::*;

#[cfg(loom)]
mod model {
    /// A model has no processors.
    pub(crate) fn current_cpu() -> u32 {
        0
    }

    /// A model has no clock.
    pub(crate) fn monotonic_subsec_nanos() -> u32 {
        0
    }
}
#[cfg(loom)]
pub(crate) use model::*;
