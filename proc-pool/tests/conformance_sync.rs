//! What CPython asserts of its synchronisation, row by row, with threads, spawned and forked processes.
//!
//! | CPython | here |
//! |---|---|
//! | `_TestLock.test_lock` | `conformance_lock`; a second release does not compile: the guard is gone |
//! | `test_lock_locked_2processes` | `conformance_lock_locked_2processes` |
//! | `test_rlock` | `conformance_rlock`; a fourth release does not compile |
//! | `test_rlock_locked_2processes` | `conformance_rlock_locked_2processes` |
//! | `test_repr_lock`, `test_repr_rlock` | `conformance_repr_lock`, `conformance_repr_rlock`: the process by its id, not a name |
//! | `test_lock_context`, `test_rlock_context` | `conformance_lock_context`, `conformance_rlock_context` |
//! | `_TestSemaphore.test_semaphore` | `conformance_semaphore`, on [`Signal`](proc_pool::shared::Signal): the one without a bound |
//! | `test_bounded_semaphore` | `conformance_bounded_semaphore`, on [`Semaphore`](proc_pool::shared::Semaphore) |
//! | `test_timeout` | `conformance_semaphore_timeout` |
//! | `_TestCondition.test_notify` | `conformance_condition_notify` |
//! | `test_notify_all` | `conformance_condition_notify_all` |
//! | `test_notify_n` | `conformance_condition_notify_n` |
//! | `test_timeout` | `conformance_condition_timeout` |
//! | `test_waitfor`, `test_waitfor_timeout` | `conformance_condition_waitfor`, `conformance_condition_waitfor_timeout` |
//! | `test_wait_result` | `conformance_condition_wait_result`; `conformance_condition_wait_interrupted` for the signal, which ends no wait here |
//! | `_TestEvent.test_event` | `conformance_event` |
//! | `test_repr` | `conformance_event_repr` |
//! | `_TestBarrier.test_barrier`, `test_barrier_10` | `conformance_barrier`, `conformance_barrier_10` |
//! | `test_wait_return` | `conformance_barrier_wait_return` |
//! | `test_action` | `conformance_barrier_action` |
//! | `test_abort`, `test_reset`, `test_abort_and_reset` | `conformance_barrier_abort`, `conformance_barrier_reset`, `conformance_barrier_abort_and_reset` |
//! | `test_timeout` | `conformance_barrier_timeout` |
//! | `test_default_timeout` | `conformance_barrier_default_timeout`: the call has the timeout, there is no default |
//! | `test_single_thread` | `conformance_barrier_single_thread` |
//! | `test_thousand` | `conformance_barrier_thousand` |
//! | `SemLockTests.test_semlock_subclass` | not here: a class of Python's |
//! | `TestForkAwareThreadLock` | `conformance_fork_aware_thread_lock`, in `conformance_shared` |
//!
//! The versions of these rows for objects of a manager come with the manager.
//!
//! Every test has the name of its row; the tests in it are called after the way in which the others are started. A wait
//! that has to time out is asserted to have lasted; nothing is asserted to be fast.

mod common;

#[macro_use]
#[path = "conformance/start.rs"]
mod start;

#[path = "conformance/barrier.rs"]
mod barrier;
#[path = "conformance/condition.rs"]
mod condition;
#[path = "conformance/locks.rs"]
mod locks;
