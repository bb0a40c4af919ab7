//! The slots of a ring: words and payloads in a segment or on the heap, or loom's cells in a model.
//!
//! # Safety
//!
//! * An index is below the capacity: it comes from [`super::Ring::locate`] only, never from shared memory.
//! * A payload is written by the holder of the slot's WRITING word and read by the holder of its READING word
//!   (for the interior of a batch: of the batch's first word), so never by two at once.
//! * Natively no reference to payload bytes is ever made: another process may scribble on them.
#![allow(unsafe_code)]

use super::layout::Layout;
use super::{Ring, word::Word};
use shm_core::sync::AtomicU64;

#[cfg(not(loom))]
pub use native::Memory;
#[cfg(not(loom))]
pub(super) use native::Slots;

#[cfg(loom)]
pub use model::Memory;
#[cfg(loom)]
pub(super) use model::Slots;

#[cfg(not(loom))]
mod native {
    use super::*;
    use crate::ring::layout::{ALIGN, WORD};
    use std::alloc;
    use std::marker::PhantomData;
    use std::ptr::NonNull;

    /// The slots of a ring that lies in a mapping or on the heap.
    #[derive(Clone, Copy, Debug)]
    pub(in crate::ring) struct Slots<'m> {
        base: NonNull<u8>,
        stride: usize,
        memory: PhantomData<&'m AtomicU64>,
    }

    // SAFETY: the words are atomics, and the claim protocol hands each payload to one thread at a time.
    unsafe impl Send for Slots<'_> {}
    // SAFETY: as above.
    unsafe impl Sync for Slots<'_> {}

    impl<'m> Slots<'m> {
        /// # Safety
        ///
        /// As [`Ring::attach`].
        pub(in crate::ring) unsafe fn new(base: NonNull<u8>, layout: &Layout) -> Self {
            Slots { base, stride: layout.stride(), memory: PhantomData }
        }

        #[inline(always)]
        pub(in crate::ring) fn word(&self, index: usize) -> &'m AtomicU64 {
            // SAFETY: the index is below the capacity, so the word lies within the ring's memory; the stride is a
            // multiple of 8 from an aligned base; every process accesses the word as an atomic.
            unsafe { self.base.add(index * self.stride).cast().as_ref() }
        }

        #[inline(always)]
        fn payload(&self, index: usize) -> *mut u8 {
            // SAFETY: the index is below the capacity, so the payload lies within the ring's memory.
            unsafe { self.base.add(index * self.stride + WORD) }.as_ptr()
        }

        /// Lends the payload of a slot that the caller holds WRITING.
        #[inline(always)]
        pub(in crate::ring) fn write<R>(&self, index: usize, f: impl FnOnce(*mut u8) -> R) -> R {
            f(self.payload(index))
        }

        /// Lends the payload of a slot that the caller holds READING.
        #[inline(always)]
        pub(in crate::ring) fn read<R>(&self, index: usize, f: impl FnOnce(*const u8) -> R) -> R {
            f(self.payload(index))
        }
    }

    /// Heap memory of a ring: for the threads of one process, for tests and for models.
    ///
    /// # Across processes
    ///
    /// Not shared: a forked child has a copy.
    #[derive(Debug)]
    pub struct Memory {
        base: NonNull<u8>,
        layout: Layout,
    }

    // SAFETY: the memory is owned and reached through the ring's words only.
    unsafe impl Send for Memory {}
    // SAFETY: as above.
    unsafe impl Sync for Memory {}

    impl Memory {
        /// Memory of an empty ring.
        pub fn new(layout: Layout) -> Memory {
            let heap = Memory::heap_layout(&layout);
            // SAFETY: a ring has at least one slot, so the size is not zero.
            let base = unsafe { alloc::alloc_zeroed(heap) };
            let Some(base) = NonNull::new(base) else { alloc::handle_alloc_error(heap) };
            Memory { base, layout }
        }

        /// The ring in this memory.
        pub fn ring(&self) -> Ring<'_> {
            // SAFETY: the memory is aligned, long enough, was zeroed at birth and lives as long as the borrow.
            unsafe { Ring::attach(self.base, self.layout) }
        }

        fn heap_layout(layout: &Layout) -> alloc::Layout {
            alloc::Layout::from_size_align(layout.len_bytes(), ALIGN)
                .expect("a checked ring layout is far below isize::MAX")
        }

        /// A ring whose slots have all been through `lap` laps.
        #[doc(hidden)]
        pub fn at_lap(layout: Layout, lap: u64) -> Memory {
            let memory = Memory::new(layout);
            // SAFETY: as in `ring`.
            let slots = unsafe { Slots::new(memory.base, &layout) };
            super::fill(&slots, &layout, lap);
            memory
        }
    }

    impl Drop for Memory {
        fn drop(&mut self) {
            // SAFETY: allocated by `new` with this layout; every ring borrowed from it is gone.
            unsafe { alloc::dealloc(self.base.as_ptr(), Memory::heap_layout(&self.layout)) }
        }
    }
}

#[cfg(loom)]
mod model {
    use super::*;
    use shm_core::sync::UnsafeCell;

    /// One slot of a model: loom sees every access to the word and every use of the payload.
    #[derive(Debug)]
    struct Slot {
        word: AtomicU64,
        /// 64-bit words, so that messages of a model may be read as such.
        payload: UnsafeCell<Box<[u64]>>,
    }

    /// The slots of a model's ring.
    #[derive(Clone, Copy, Debug)]
    pub(in crate::ring) struct Slots<'m>(&'m [Slot]);

    // SAFETY: loom checks the claim protocol that makes it so.
    unsafe impl Send for Slots<'_> {}
    // SAFETY: as above.
    unsafe impl Sync for Slots<'_> {}

    impl<'m> Slots<'m> {
        pub(in crate::ring) fn word(&self, index: usize) -> &'m AtomicU64 {
            &self.0[index].word
        }

        /// Lends the payload of a slot that the caller holds WRITING.
        pub(in crate::ring) fn write<R>(&self, index: usize, f: impl FnOnce(*mut u8) -> R) -> R {
            self.0[index].payload.with_mut(|payload| {
                // SAFETY: the caller holds the slot; loom has just checked that nobody else uses it.
                f(unsafe { (*payload).as_mut_ptr().cast() })
            })
        }

        /// Lends the payload of a slot that the caller holds READING.
        pub(in crate::ring) fn read<R>(&self, index: usize, f: impl FnOnce(*const u8) -> R) -> R {
            self.0[index].payload.with(|payload| {
                // SAFETY: as in `write`.
                f(unsafe { (*payload).as_ptr().cast() })
            })
        }
    }

    /// Heap memory of a ring: for the threads of one process, for tests and for models.
    #[derive(Debug)]
    pub struct Memory {
        slots: Box<[Slot]>,
        layout: Layout,
    }

    // SAFETY: loom checks the claim protocol that makes it so.
    unsafe impl Send for Memory {}
    // SAFETY: as above.
    unsafe impl Sync for Memory {}

    impl Memory {
        /// Memory of an empty ring.
        pub fn new(layout: Layout) -> Memory {
            let slot = |_| Slot {
                word: AtomicU64::new(Word::free(0).0),
                payload: UnsafeCell::new(vec![0; layout.payload_len().div_ceil(8)].into_boxed_slice()),
            };
            Memory { slots: (0..layout.capacity()).map(slot).collect(), layout }
        }

        /// The ring in this memory.
        pub fn ring(&self) -> Ring<'_> {
            Ring::with_slots(Slots(&self.slots), self.layout)
        }

        /// A ring whose slots have all been through `lap` laps.
        #[doc(hidden)]
        pub fn at_lap(layout: Layout, lap: u64) -> Memory {
            let memory = Memory::new(layout);
            super::fill(&Slots(&memory.slots), &layout, lap);
            memory
        }
    }
}

fn fill(slots: &Slots<'_>, layout: &Layout, lap: u64) {
    for index in 0..layout.capacity() {
        // Relaxed: nobody else knows of this memory yet.
        slots.word(index).store(Word::free(lap).0, shm_core::sync::Ordering::Relaxed);
    }
}
