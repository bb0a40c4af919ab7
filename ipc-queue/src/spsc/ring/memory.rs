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

/// Bytes of a cache line.
#[cfg(not(loom))]
const LINE: usize = 64;
/// Bytes between what the producer writes and what it fetches, at most, and at most three quarters of the ring. So far
/// ahead, the consumer is long done with a line, and its processor no longer fetches it on its own account.
#[cfg(not(loom))]
const AHEAD_TO_WRITE: usize = 6144;
/// Bytes between what the consumer reads and what it fetches: as many lines as may be under way at once.
#[cfg(not(loom))]
const AHEAD_TO_READ: usize = 1024;

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
        /// Slots between the one that is written and the one that is fetched.
        ahead_to_write: usize,
        /// Slots between the one that is read and the one that is fetched.
        ahead_to_read: usize,
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
            let len = stride * layout.capacity;
            let slots = |bytes: usize| (bytes / stride.max(1)).max(1);
            let (ahead_to_write, ahead_to_read) =
                (slots(AHEAD_TO_WRITE.min(len / 4 * 3)), slots(AHEAD_TO_READ));
            Slots { base, stride, ahead_to_write, ahead_to_read, memory: PhantomData }
        }

        #[inline(always)]
        fn payload(&self, slot: usize) -> *mut u8 {
            // SAFETY: slots are numbered from 0 to below the capacity, so this one lies within the ring's memory.
            unsafe { self.base.add(slot * self.stride) }.as_ptr()
        }

        /// Lends the payload of a slot that belongs to the producer.
        #[inline(always)]
        pub(in crate::spsc::ring) fn write<R>(&self, slot: usize, f: impl FnOnce(*mut u8) -> R) -> R {
            f(self.payload(slot))
        }

        /// Lends the payload of a slot that belongs to the consumer.
        #[inline(always)]
        pub(in crate::spsc::ring) fn read<R>(&self, slot: usize, f: impl FnOnce(*const u8) -> R) -> R {
            f(self.payload(slot))
        }

        /// Fetches the line that the producer will write soon, if it is the producer's. A hint.
        #[inline(always)]
        pub(in crate::spsc::ring) fn fetch_to_write(&self, slot: usize, is_own: impl FnOnce(usize) -> bool) {
            if let Some(line) = self.line_ahead(slot, self.ahead_to_write, is_own) {
                fetch_to_write(line);
            }
        }

        /// Fetches the line that the consumer will read soon, if it is the consumer's. A hint.
        #[inline(always)]
        pub(in crate::spsc::ring) fn fetch_to_read(&self, slot: usize, is_own: impl FnOnce(usize) -> bool) {
            if let Some(line) = self.line_ahead(slot, self.ahead_to_read, is_own) {
                fetch_to_read(line);
            }
        }

        /// Fetches what the producer will write from `slot` on, as far as [`Slots::fetch_to_write`] will not.
        pub(in crate::spsc::ring) fn begin_to_write(&self, slot: usize, is_own: impl Fn(usize) -> bool) {
            self.lines(slot, self.ahead_to_write, is_own).for_each(fetch_to_write);
        }

        /// Fetches what the consumer will read from `slot` on, as far as [`Slots::fetch_to_read`] will not.
        pub(in crate::spsc::ring) fn begin_to_read(&self, slot: usize, is_own: impl Fn(usize) -> bool) {
            self.lines(slot, self.ahead_to_read, is_own).for_each(fetch_to_read);
        }

        /// About one address in each line of `count` slots, as far as the caller says that they are its own.
        fn lines(
            &self,
            slot: usize,
            count: usize,
            is_own: impl Fn(usize) -> bool,
        ) -> impl Iterator<Item = *mut u8> {
            let step = (LINE / self.stride.max(1)).max(1);
            let (base, stride) = (self.base.as_ptr(), self.stride);
            (slot..slot + count)
                .step_by(step)
                .take_while(move |slot| is_own(*slot))
                .map(move |slot| base.wrapping_add(slot * stride))
        }

        /// The payload `ahead` slots further, if it is the first in its line and lies in a slot that the caller says is its
        /// own: the line of another slot may be the one that the other side is working on.
        #[inline(always)]
        fn line_ahead(
            &self,
            slot: usize,
            ahead: usize,
            is_own: impl FnOnce(usize) -> bool,
        ) -> Option<*mut u8> {
            let slot = slot + ahead;
            let place = slot * self.stride;
            (place % LINE < self.stride && is_own(slot)).then(|| self.base.as_ptr().wrapping_add(place))
        }
    }

    /// Asks for a line to write it. A hint.
    #[inline(always)]
    fn fetch_to_write(line: *mut u8) {
        // SAFETY: a hint about any address, which never faults; a processor that does not know it does nothing.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            std::arch::asm!("prefetchw [{}]", in(reg) line, options(nostack, preserves_flags, readonly));
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
    }

    /// Asks for a line to read it. A hint.
    #[inline(always)]
    fn fetch_to_read(line: *mut u8) {
        // SAFETY: a hint about any address, which never faults.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(line.cast_const().cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
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
        /// Lends the payload of a slot that belongs to the producer.
        pub(in crate::spsc::ring) fn write<R>(&self, slot: usize, f: impl FnOnce(*mut u8) -> R) -> R {
            // SAFETY: loom checks that nobody else uses it.
            self.0[slot].with_mut(|payload| f(unsafe { (*payload).as_mut_ptr().cast() }))
        }

        /// Lends the payload of a slot that belongs to the consumer.
        pub(in crate::spsc::ring) fn read<R>(&self, slot: usize, f: impl FnOnce(*const u8) -> R) -> R {
            // SAFETY: as in `write`.
            self.0[slot].with(|payload| f(unsafe { (*payload).as_ptr().cast() }))
        }

        pub(in crate::spsc::ring) fn fetch_to_write(
            &self,
            _slot: usize,
            _is_own: impl FnOnce(usize) -> bool,
        ) {
        }

        pub(in crate::spsc::ring) fn fetch_to_read(&self, _slot: usize, _is_own: impl FnOnce(usize) -> bool) {
        }

        pub(in crate::spsc::ring) fn begin_to_write(&self, _slot: usize, _is_own: impl Fn(usize) -> bool) {}

        pub(in crate::spsc::ring) fn begin_to_read(&self, _slot: usize, _is_own: impl Fn(usize) -> bool) {}
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
