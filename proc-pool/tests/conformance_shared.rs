//! What CPython asserts of its shared values, arrays and memory, and of what is left of them, row by row, with threads,
//! spawned and forked processes.
//!
//! | CPython | here |
//! |---|---|
//! | `_TestValue.test_value`, `test_rawvalue` | `conformance_value`, `conformance_rawvalue` |
//! | `test_getobj_getlock` | `conformance_value_getobj_getlock`, `conformance_array_getobj_getlock` |
//! | `test_invalid_typecode` | not here: types |
//! | `_TestArray.test_array`, `test_rawarray` | `conformance_array`, `conformance_rawarray` |
//! | `test_array_from_size` | `conformance_array_from_size` |
//! | `_TestSharedCTypes.test_sharedctypes`, `test_synchronize`, `test_copy` | `conformance_sharedctypes`, `conformance_synchronize`, `conformance_copy` |
//! | `_TestHeap.test_heap` | `conformance_heap`: blocks of fixed sizes, which nobody else may have, where Python's adjoin |
//! | `test_free_from_gc` | `conformance_free_from_gc`: at the end of a thread, and under locks |
//! | `_TestSharedMemory.test_shared_memory_name_with_embedded_null` | `conformance_shared_memory_name_with_embedded_null` |
//! | `test_shared_memory_basics` | `conformance_shared_memory_basics`; that a drawn name which is taken is drawn again: a unit test of `shm_core::named` |
//! | `test_shared_memory_recreate`, `test_invalid_shared_memory_creation` | `conformance_shared_memory_recreate`, `conformance_invalid_shared_memory_creation` |
//! | `test_shared_memory_pickle_unpickle`, `.._dead_object` | `conformance_shared_memory_pickle_unpickle`, `.._dead_object`: a handle travels though the name is gone |
//! | `test_shared_memory_across_processes` | `conformance_shared_memory_across_processes` |
//! | `test_shared_memory_SharedMemoryServer_ignores_sigint`, `SharedMemoryManager_*` | come with the manager |
//! | `test_shared_memory_ShareableList_basics` | `conformance_shareable_list_basics`, `.._change_type`, `.._too_long`, `.._count_index`, `.._copy`, `.._empty` |
//! | `test_shared_memory_ShareableList_pickling`, `.._dead_object` | `conformance_shareable_list_pickling`, `.._dead_object` |
//! | `test_shared_memory_cleaned_after_process_termination` | `conformance_shared_memory_cleaned_after_process_termination` |
//! | `test_shared_memory_untracking`, `test_shared_memory_tracking` | `conformance_shared_memory_untracking`, `conformance_shared_memory_tracking` |
//! | `TestSharedMemoryNames` | `conformance_shared_memory_names` |
//! | `TestResourceTracker.test_resource_tracker` | `conformance_resource_tracker`, `conformance_resource_tracker_sigkill` |
//! | `.._sigint`, `.._sigterm`, `.._sigkill`, `.._exit_code`, `safety_net_timeout` | not here: no process tracks anything |
//! | `.._reused` | `conformance_resource_tracker_reused` |
//! | (no row) | `conformance_resource_tracker_of_a_pool`: the supervisor looks for names after a crash |
//! | `too_long_name` | `conformance_shared_memory_names` |
//! | `test_resource_tracker_blocked_signals` | `conformance_resource_tracker_blocked_signals` |
//! | `raw_fork_prompt_reap`, `mp_fork_reuse_and_prompt_reap` | `conformance_resource_tracker_raw_fork_prompt_reap` |
//! | `fork_deadlock`, `lock_reinit_after_fork` | `conformance_resource_tracker_lock_reinit_after_fork` |
//! | `TestNamedResource.test_global_named_resource_spawn` | `conformance_global_named_resource` |
//! | `TestForkAwareThreadLock` (of the synchronisation rows) | `conformance_fork_aware_thread_lock` |
//!
//! The versions of these rows for objects of a manager come with the manager. That a whole suite leaves neither descriptor
//! nor name: `conformance_leaks`. Python on the other side of the same memory: `shm-array/tests/python.rs`.

mod common;

#[macro_use]
#[path = "conformance/start.rs"]
mod start;

#[path = "conformance/heap.rs"]
mod heap;
#[path = "conformance/lifecycle.rs"]
mod lifecycle;
#[path = "conformance/list.rs"]
mod list;
#[path = "conformance/memory.rs"]
mod memory;
#[path = "conformance/values.rs"]
mod values;
