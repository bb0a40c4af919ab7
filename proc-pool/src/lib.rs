//! Functions called in worker processes.
