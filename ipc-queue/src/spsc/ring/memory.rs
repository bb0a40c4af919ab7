//! The slots of a ring: payloads in a segment or on the heap, or loom's cells in a model.
//!
//! # Safety
//!
//! As in [`ring`](super).
#![allow(unsafe_code)]

use super::{Indices, Layout, Ring};
use shm_core::sync::AtomicU64;

#[cfg(loom)]
pub use model::Memory;
#[cfg(loom)]
pub(super) use model::Slots;
#[cfg(not(loom))]
pub use native::Memory;
#[cfg(not(loom))]
pub(super) use native::Slots;

/// Bytes that a side fetches ahead of the slot that it works on: two lines.
#[cfg(not(loom))]
const AHEAD: usize = 128;

#[cfg(not(loom))]
mod native {
    use super::*;
    use std::alloc;
    use std::marker::PhantomData;
    use std::ptr::NonNull;

    /// The slots of a ring that lies in a mapping or on the heap.
    #[derive(Clone, Copy, Debug)]
    pub(in crate::spsc::ring) struct Slots<'m> {
        base: NonNull<u8>,
        stride: usize,
        /// Bytes of all slots.
        len: usize,
        memory: PhantomData<&'m AtomicU64>,
    }

    // SAFETY: the indices hand each payload to one side at a time.
    unsafe impl Send for Slots<'_> {}
    // SAFETY: as above.
    unsafe impl Sync for Slots<'_> {}

    impl Slots<'_> {
        /// # Safety
        ///
        /// As [`Ring::attach`].
        pub(in crate::spsc::ring) unsafe fn new(base: NonNull<u8>, layout: &Layout) -> Self {
            let stride = layout.stride();
            Slots { base, stride, len: stride * layout.capacity, memory: PhantomData }
        }

        /// The place of a slot: its first byte.
        pub(in crate::spsc::ring) fn place(&self, slot: usize) -> usize {
            slot * self.stride
        }

        /// The place of the next slot.
        #[inline(always)]
        pub(in crate::spsc::ring) fn next(&self, place: usize) -> usize {
            let next = place + self.stride;
            if next == self.len { 0 } else { next }
        }

        #[inline(always)]
        fn payload(&self, place: usize) -> *mut u8 {
            // SAFETY: a place is that of a slot, which lies within the ring's memory.
            unsafe { self.base.add(place) }.as_ptr()
        }

        /// Lends the payload of a slot that belongs to the producer.
        #[inline(always)]
        pub(in crate::spsc::ring) fn write<R>(&self, place: usize, f: impl FnOnce(*mut u8) -> R) -> R {
            f(self.payload(place))
        }

        /// Lends the payload of a slot that belongs to the consumer.
        #[inline(always)]
        pub(in crate::spsc::ring) fn read<R>(&self, place: usize, f: impl FnOnce(*const u8) -> R) -> R {
            f(self.payload(place))
        }

        /// Fetches what the producer will write soon. A hint.
        #[inline(always)]
        pub(in crate::spsc::ring) fn fetch_to_write(&self, place: usize) {
            let ahead = self.payload(place).wrapping_add(AHEAD);
            // SAFETY: a hint about any address, which never faults; a processor that does not know it does nothing.
            #[cfg(target_arch = "x86_64")]
            unsafe {
                std::arch::asm!("prefetchw [{}]", in(reg) ahead, options(nostack, preserves_flags, readonly));
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = ahead;
        }

        /// Fetches what the consumer will read soon. A hint.
        #[inline(always)]
        pub(in crate::spsc::ring) fn fetch_to_read(&self, place: usize) {
            let ahead = self.payload(place).wrapping_add(AHEAD);
            // SAFETY: a hint about any address, which never faults.
            #[cfg(target_arch = "x86_64")]
            unsafe {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast_const().cast());
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = ahead;
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

    // SAFETY: the memory is owned and reached through the ring only.
    unsafe impl Send for Memory {}
    // SAFETY: as above.
    unsafe impl Sync for Memory {}

    impl Memory {
        /// Memory of an empty ring.
        pub fn new(layout: Layout) -> Memory {
            let heap = Memory::heap_layout(&layout);
            // SAFETY: a ring has indices, so the size is not zero.
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
            alloc::Layout::from_size_align(layout.len_bytes(), align_of::<Indices>())
                .expect("a checked ring layout is far below isize::MAX")
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
    use super::super::Line;
    use super::*;
    use shm_core::sync::UnsafeCell;

    /// 64-bit words, so that messages of a model may be read as such.
    type Payload = UnsafeCell<Box<[u64]>>;

    /// The slots of a model's ring: loom sees every use of a payload.
    #[derive(Clone, Copy, Debug)]
    pub(in crate::spsc::ring) struct Slots<'m>(&'m [Payload]);

    // SAFETY: loom checks the protocol that makes it so.
    unsafe impl Send for Slots<'_> {}
    // SAFETY: as above.
    unsafe impl Sync for Slots<'_> {}

    impl Slots<'_> {
        /// The place of a slot: its number.
        pub(in crate::spsc::ring) fn place(&self, slot: usize) -> usize {
            slot
        }

        /// The place of the next slot.
        pub(in crate::spsc::ring) fn next(&self, place: usize) -> usize {
            (place + 1) % self.0.len()
        }

        /// Lends the payload of a slot that belongs to the producer.
        pub(in crate::spsc::ring) fn write<R>(&self, place: usize, f: impl FnOnce(*mut u8) -> R) -> R {
            // SAFETY: loom checks that nobody else uses it.
            self.0[place].with_mut(|payload| f(unsafe { (*payload).as_mut_ptr().cast() }))
        }

        /// Lends the payload of a slot that belongs to the consumer.
        pub(in crate::spsc::ring) fn read<R>(&self, place: usize, f: impl FnOnce(*const u8) -> R) -> R {
            // SAFETY: as in `write`.
            self.0[place].with(|payload| f(unsafe { (*payload).as_ptr().cast() }))
        }

        pub(in crate::spsc::ring) fn fetch_to_write(&self, _place: usize) {}

        pub(in crate::spsc::ring) fn fetch_to_read(&self, _place: usize) {}
    }

    /// Heap memory of a ring: for the threads of one process, for tests and for models.
    #[derive(Debug)]
    pub struct Memory {
        indices: Indices,
        slots: Box<[Payload]>,
    }

    // SAFETY: loom checks the protocol that makes it so.
    unsafe impl Send for Memory {}
    // SAFETY: as above.
    unsafe impl Sync for Memory {}

    impl Memory {
        /// Memory of an empty ring.
        pub fn new(layout: Layout) -> Memory {
            let line = || Line(AtomicU64::new(0));
            let slot = |_| UnsafeCell::new(vec![0; layout.payload_len.div_ceil(8)].into_boxed_slice());
            Memory {
                indices: Indices { head: line(), tail: line() },
                slots: (0..layout.capacity).map(slot).collect(),
            }
        }

        /// The ring in this memory.
        pub fn ring(&self) -> Ring<'_> {
            Ring { indices: &self.indices, slots: Slots(&self.slots), capacity: self.slots.len() }
        }
    }
}
