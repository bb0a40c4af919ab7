//! Naming a function for another process that runs the same program.
//!
//! Two processes of one executable differ in where it is loaded, not in how it is laid out. So the distance of a
//! function from the load address names it: [`Code::of`] takes the name, [`Code::resolve`] turns it back into a
//! pointer. What is named is a *trampoline*, monomorphised for the user's function type `F`; `F` has no size, so
//! the trampoline can make the value that it calls out of nothing.
//!
//! # What makes it sound
//!
//! * both processes compared build id, protocol version and a canary before the first name crosses
//!   ([`crate::handshake`]);
//! * names travel over the control socket only, whose other end the kernel guarantees, never through shared memory;
//! * a name carries a tag of its signature, and its address must lie in executable memory of the main program.
//!
//! A function in another shared object (a plugin, a `dylib`) has no name: children load it elsewhere or not at all.
#![allow(unsafe_code)]
//! # Safety
//!
//! The one invariant: a `Code<S>` that resolves was made by `Code::of` from an `S`, in this process or in one whose
//! handshake proved the same image.

use crate::error::{Kind, Result};
use serde::{Deserialize, Serialize};
use std::ffi::{c_int, c_void};
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::OnceLock;

/// The type of a trampoline.
///
/// # Safety
///
/// Implemented for `fn` pointer types only: [`Code::resolve`] makes one out of an address.
pub(crate) unsafe trait Signature: Copy + 'static {}

/// The name of a function of type `S` in every process that runs this executable.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub(crate) struct Code<S> {
    offset: u64,
    tag: u64,
    signature: PhantomData<fn() -> S>,
}

impl<S> Clone for Code<S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Code<S> {}

impl<S> fmt::Debug for Code<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Code({:#x})", self.offset)
    }
}

/// A name that means nothing here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidCode {
    #[error("the function at offset {offset:#x} does not lie in executable memory of this program")]
    Outside { offset: u64 },
    #[error("the function at offset {offset:#x} has another signature than the one asked for")]
    Signature { offset: u64 },
}

impl<S: Signature> Code<S> {
    const POINTER: () = assert!(size_of::<S>() == size_of::<usize>());

    /// Names `function`; `label` is for the error.
    ///
    /// # Errors
    ///
    /// `is_foreign_function` if it does not lie in the main program.
    pub(crate) fn of(function: S, label: &str) -> Result<Self> {
        let () = Self::POINTER;
        // SAFETY: `S` is a function pointer, which has the size of an address (checked above).
        let address: usize = unsafe { std::mem::transmute_copy(&function) };
        let image = Image::of_this_process();
        if !image.contains(address) {
            let label = label.to_owned();
            return Err(Kind::ForeignFunction { label, address }.into());
        }
        Ok(Self { offset: address.wrapping_sub(image.base) as u64, tag: Self::tag(), signature: PhantomData })
    }

    /// The function that the name means in this process.
    ///
    /// # Errors
    ///
    /// [`InvalidCode`] for a name of another signature or outside of the program's code.
    pub(crate) fn resolve(self) -> std::result::Result<S, InvalidCode> {
        let () = Self::POINTER;
        let offset = self.offset;
        if self.tag != Self::tag() {
            return Err(InvalidCode::Signature { offset });
        }
        let image = Image::of_this_process();
        let address = usize::try_from(offset)
            .map(|offset| image.base.wrapping_add(offset))
            .ok()
            .filter(|&address| image.contains(address))
            .ok_or(InvalidCode::Outside { offset })?;
        // SAFETY: `S` is a function pointer; the address came from `Code::of` in a process with the same image, whose
        // load address is `base` here.
        Ok(unsafe { std::mem::transmute_copy(&address) })
    }

    fn tag() -> u64 {
        fnv(std::any::type_name::<S>().as_bytes())
    }
}

/// Checks at compile time that a function carries no state.
pub(crate) const fn assert_stateless<F>() {
    assert!(
        size_of::<F>() == 0,
        "only functions and closures without captures can be sent to another process; captures are not possible: \
         pass what the closure needs as its argument, or use map_with"
    );
}

/// Makes a value of a type without size, in a process that was not given one.
///
/// # Safety
///
/// A value of `F` must exist or have existed in a process of this image. `F: Copy` makes another one legal.
pub(crate) unsafe fn conjure<F: Copy>() -> F {
    const { assert_stateless::<F>() };
    // SAFETY: reads no bytes, from an aligned non-null pointer; the value is inhabited by the contract.
    unsafe { NonNull::<F>::dangling().read() }
}

/// What is loaded as the main program of this process.
#[derive(Debug, Default)]
pub(crate) struct Image {
    base: usize,
    executable: Vec<Range<usize>>,
    readable: Vec<Range<usize>>,
    build_id: Option<Vec<u8>>,
}

impl Image {
    /// The image, looked up once.
    pub(crate) fn of_this_process() -> &'static Image {
        static IMAGE: OnceLock<Image> = OnceLock::new();
        IMAGE.get_or_init(|| {
            let mut image = Image::default();
            let context: *mut Image = &mut image;
            // SAFETY: the callback gets `context` back, which outlives the call.
            unsafe { libc::dl_iterate_phdr(Some(first_object), context.cast()) };
            image
        })
    }

    /// The linker's build id, if the program has one.
    pub(crate) fn build_id(&self) -> Option<&[u8]> {
        self.build_id.as_deref()
    }

    fn contains(&self, address: usize) -> bool {
        self.executable.iter().any(|range| range.contains(&address))
    }

    /// Where the canary lies and what its code looks like: a word of comparison for two images.
    pub(crate) fn canary(&self) -> (u64, u64) {
        const LEN: usize = 16;
        let address = (canary as fn(u64) -> u64) as usize;
        let fits = |range: &&Range<usize>| range.contains(&address) && range.end - address >= LEN;
        let code = match self.readable.iter().find(fits) {
            // SAFETY: the loader mapped this range of the main program readable, and never unmaps it.
            Some(_) => fnv(unsafe { &*std::ptr::with_exposed_provenance::<[u8; LEN]>(address) }),
            None => 0,
        };
        (address.wrapping_sub(self.base) as u64, code)
    }
}

/// A function whose place and code the handshake compares.
#[inline(never)]
fn canary(seed: u64) -> u64 {
    std::hint::black_box(seed.rotate_left(17) ^ 0x9e37_79b9_7f4a_7c15)
}

/// FNV-1a.
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Reads the program headers of the first object, which is the main program, and stops.
///
/// # Safety
///
/// Called by `dl_iterate_phdr` with the `Image` to fill as `context`.
unsafe extern "C" fn first_object(
    info: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    context: *mut c_void,
) -> c_int {
    // SAFETY: the loader passes a valid record, and `context` is the `Image` of `of_this_process`.
    let (info, image) = unsafe { (&*info, &mut *context.cast::<Image>()) };
    // SAFETY: the record describes its array of program headers.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    let address = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    image.base = address(info.dlpi_addr);
    let range = |header: &libc::Elf64_Phdr| {
        let start = image.base.wrapping_add(address(header.p_vaddr));
        start..start.saturating_add(address(header.p_memsz))
    };
    let loaded = |flag: u32| {
        let wanted =
            move |header: &&libc::Elf64_Phdr| header.p_type == libc::PT_LOAD && header.p_flags & flag != 0;
        headers.iter().filter(wanted).map(range).collect::<Vec<_>>()
    };
    let (executable, readable) = (loaded(libc::PF_X), loaded(libc::PF_R));
    let build_id = headers
        .iter()
        .filter(|header| header.p_type == libc::PT_NOTE)
        .map(range)
        .filter(|note| readable.iter().any(|r| r.start <= note.start && note.end <= r.end))
        .find_map(|note| {
            // SAFETY: the note lies inside a segment that the loader mapped readable and never unmaps.
            gnu_build_id(unsafe {
                std::slice::from_raw_parts(std::ptr::with_exposed_provenance(note.start), note.len())
            })
        });
    (image.executable, image.readable, image.build_id) = (executable, readable, build_id);
    1
}

/// Finds the build id among the notes of a segment.
fn gnu_build_id(mut notes: &[u8]) -> Option<Vec<u8>> {
    const NT_GNU_BUILD_ID: u32 = 3;
    loop {
        let word = |at: usize| Some(u32::from_ne_bytes(notes.get(at..at + 4)?.try_into().ok()?));
        let (name_len, desc_len, kind) = (word(0)? as usize, word(4)? as usize, word(8)?);
        let desc_at = 12 + name_len.checked_next_multiple_of(4)?;
        let desc_end = desc_at.checked_add(desc_len)?;
        let (name, desc) = (notes.get(12..12 + name_len)?, notes.get(desc_at..desc_end)?);
        if kind == NT_GNU_BUILD_ID && name == b"GNU\0" && (1..=64).contains(&desc_len) {
            return Some(desc.to_vec());
        }
        notes = notes.get(desc_end.checked_next_multiple_of(4)?..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Unary = fn(u64) -> u64;
    type Binary = fn(u64, u64) -> u64;
    // SAFETY: a function pointer.
    unsafe impl Signature for Unary {}
    // SAFETY: a function pointer.
    unsafe impl Signature for Binary {}
    type Foreign = unsafe extern "C" fn() -> libc::pid_t;
    // SAFETY: a function pointer.
    unsafe impl Signature for Foreign {}

    fn triple(x: u64) -> u64 {
        x * 3
    }

    #[test]
    fn a_name_resolves_to_its_function() {
        let code = Code::of(triple as Unary, "triple").expect("in this image");
        let bytes = postcard::to_stdvec(&code).expect("plain data");
        let code: Code<Unary> = postcard::from_bytes(&bytes).expect("plain data");
        assert_eq!(code.resolve().expect("valid")(14), 42);
    }

    #[test]
    fn a_name_outside_of_the_code_is_refused() {
        let mut code = Code::of(triple as Unary, "triple").expect("in this image");
        for offset in [0, u64::MAX, u64::MAX / 2] {
            code.offset = offset;
            assert_eq!(code.resolve(), Err(InvalidCode::Outside { offset }));
        }
    }

    #[test]
    fn a_name_of_another_signature_is_refused() {
        let code = Code::of(triple as Unary, "triple").expect("in this image");
        let bytes = postcard::to_stdvec(&code).expect("plain data");
        let code: Code<Binary> = postcard::from_bytes(&bytes).expect("plain data");
        assert!(matches!(code.resolve(), Err(InvalidCode::Signature { .. })));
    }

    #[test]
    fn a_function_of_a_shared_library_has_no_name() {
        // Through the loader, so that no stub of the main program stands in for it.
        // SAFETY: a lookup by a terminated name.
        let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"getpid".as_ptr()) };
        assert!(!address.is_null());
        // SAFETY: `getpid` has this signature.
        let function: Foreign = unsafe { std::mem::transmute(address) };
        let error = Code::of(function, "getpid").expect_err("in libc");
        assert!(error.is_foreign_function(), "{error}");
    }

    #[test]
    fn the_canary_lies_in_the_program() {
        let (offset, code) = Image::of_this_process().canary();
        assert_ne!((offset, code), (0, 0));
    }

    #[test]
    fn damaged_notes_have_no_build_id() {
        assert_eq!(gnu_build_id(&[]), None);
        assert_eq!(gnu_build_id(&[0xff; 40]), None);
        let mut note = vec![4, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0];
        note.extend(b"GNU\0ab");
        assert_eq!(gnu_build_id(&note), Some(b"ab".to_vec()));
        note.pop();
        assert_eq!(gnu_build_id(&note), None);
    }
}
