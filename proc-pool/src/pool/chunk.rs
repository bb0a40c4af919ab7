//! Chunks of items as bytes, and the loop that runs them in a worker.
//!
//! ```text
//! items     (u32 length, argument bytes)*
//! results   (u32 length << 1 | failed, result bytes or an encoded TaskError)*
//! ```
//!
//! Each item is framed, so that one that does not decode fails alone. Lengths come from another process: they
//! are checked before use.
#![allow(unsafe_code)]
//! # Safety
//!
//! A function type's trampoline is named by `Job::open` only, which has a value of the type in its hands. That is what
//! `conjure` demands.

use crate::error::TaskError;
use crate::function::{Signature, assert_stateless, conjure};
use crate::payload::decode;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest item or result: its length and a flag share 32 bits.
pub(super) const MAX_ITEM: usize = (1 << 31) - 1;

/// Runs the items of one chunk; monomorphised for a function. It crosses to the worker by name.
pub(crate) type RunItems = fn(&mut Items<'_>);

// SAFETY: a function pointer.
unsafe impl Signature for RunItems {}

/// Appends one item to a chunk's arguments.
///
/// # Errors
///
/// `Codec` if it does not serialise or is too long; the chunk is as before.
pub(super) fn push_item<A: Serialize>(chunk: &mut Vec<u8>, item: &A) -> Result<(), TaskError> {
    push_framed(chunk, item, "the argument")
}

fn push_framed<T: Serialize>(bytes: &mut Vec<u8>, value: &T, what: &str) -> Result<(), TaskError> {
    let start = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    let failed =
        |error: &dyn std::fmt::Display| TaskError::codec(&format!("{what} cannot be encoded"), error);
    if let Err(error) = postcard::serialize_with_flavor(value, Append(bytes)) {
        bytes.truncate(start);
        return Err(failed(&error));
    }
    let len = bytes.len() - start - 4;
    if len > MAX_ITEM {
        bytes.truncate(start);
        return Err(failed(&format_args!("it has {len} bytes, and the limit is {MAX_ITEM}")));
    }
    let len = u32::try_from(len).expect("checked against MAX_ITEM");
    bytes[start..start + 4].copy_from_slice(&len.to_le_bytes());
    Ok(())
}

/// Postcard's output, appended to a vector that is kept.
struct Append<'a>(&'a mut Vec<u8>);

impl postcard::ser_flavors::Flavor for Append<'_> {
    type Output = ();

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        // A number is a few bytes: fewer than a call is worth.
        if bytes.len() <= 8 {
            bytes.iter().for_each(|byte| self.0.push(*byte));
        } else {
            self.0.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Splits a framed entry off the front of `bytes`: its header and its content.
fn split_entry(bytes: &[u8], shift: u32) -> Option<(u32, &[u8], &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<4>()?;
    let header = u32::from_le_bytes(*header);
    let (content, rest) = rest.split_at_checked((header >> shift) as usize)?;
    Some((header, content, rest))
}

/// Where a worker's results go. The implementation stores them where they outlive the worker.
pub(crate) trait Outcomes {
    /// The item of this number is about to run.
    fn begin(&mut self, item: u32);
    /// Its outcome: a header and its content.
    fn end(&mut self, item: u32, entry: &[u8]);
}

/// The items of a chunk that a worker runs.
pub(crate) struct Items<'a> {
    /// The arguments of the whole load.
    pub(super) arguments: &'a [u8],
    /// Which of them to run.
    pub(super) range: std::ops::Range<u32>,
    pub(super) outcomes: &'a mut dyn Outcomes,
    /// Kept between chunks for its capacity.
    pub(super) scratch: &'a mut Vec<u8>,
}

impl std::fmt::Debug for Items<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Items").field("range", &self.range).finish_non_exhaustive()
    }
}

/// The trampoline of `F`: decodes, calls and encodes item by item. A panic fails its item.
pub(crate) fn run_items<F, A, R>(items: &mut Items<'_>)
where
    F: Fn(A) -> R + Copy + Send + Sync + 'static,
    A: DeserializeOwned,
    R: Serialize,
{
    const { assert_stateless::<F>() };
    // SAFETY: the trampoline is named only by somebody who has an `F`.
    let function = unsafe { conjure::<F>() };
    let mut rest = items.arguments;
    for item in 0..items.range.end {
        let entry = split_entry(rest, 0);
        let Some((_, content, after)) = entry else {
            return fail_rest(items, item);
        };
        rest = after;
        if item < items.range.start {
            continue;
        }
        items.outcomes.begin(item);
        items.scratch.clear();
        let scratch = &mut *items.scratch;
        let outcome = crate::panic::catch(|| {
            let argument = decode::<A>(content, "the argument")?;
            push_framed(scratch, &function(argument), "the result")
        });
        match outcome.and_then(|done| done) {
            Ok(()) => {
                let header = items.scratch.first_chunk_mut::<4>().expect("framed just now");
                *header = (u32::from_le_bytes(*header) << 1).to_le_bytes();
                items.outcomes.end(item, items.scratch);
            }
            Err(error) => {
                items.outcomes.end(item, &failure(&error));
            }
        }
    }
}

/// Fails the items whose arguments are not there.
#[cold]
fn fail_rest(items: &mut Items<'_>, from: u32) {
    let error = TaskError::codec("the argument cannot be decoded", &"the chunk ends before it");
    fail_items(items, from, &error);
}

/// Gives all items from `from` on the same failure.
#[cold]
pub(super) fn fail_items(items: &mut Items<'_>, from: u32, error: &TaskError) {
    let entry = failure(error);
    for item in from.max(items.range.start)..items.range.end {
        items.outcomes.end(item, &entry);
    }
}

/// The entry of a failure: header and content.
#[cold]
pub(super) fn failure(error: &TaskError) -> Vec<u8> {
    let content = postcard::to_stdvec(error).unwrap_or_default();
    // A TaskError is a few bounded strings.
    let len = u32::try_from(content.len()).unwrap_or(0);
    [&(len << 1 | 1).to_le_bytes(), content.as_slice()].concat()
}

/// The outcomes of a piece, decoded one by one.
#[derive(Debug)]
pub(super) struct Results<'a> {
    bytes: &'a [u8],
}

impl<'a> Results<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// How many whole outcomes there are, at most `limit`, and the bytes that they take.
    pub(super) fn whole(bytes: &[u8], limit: u32) -> (u32, usize) {
        let (mut rest, mut count) = (bytes, 0);
        while count < limit {
            let Some((_, _, after)) = split_entry(rest, 1) else {
                break;
            };
            rest = after;
            count += 1;
        }
        (count, bytes.len() - rest.len())
    }

    /// The next item's outcome. After damaged bytes, every further one is a `Codec` error.
    #[inline]
    pub(super) fn next<R: DeserializeOwned>(&mut self) -> Result<R, TaskError> {
        let Some((header, content, rest)) = split_entry(self.bytes, 1) else {
            self.bytes = &[];
            return Err(TaskError::codec(
                "the result cannot be decoded",
                &"the worker's answer ends before it",
            ));
        };
        self.bytes = rest;
        if header & 1 == 0 { decode(content, "the result") } else { Err(decode(content, "the failure")?) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Collect {
        bytes: Vec<u8>,
        begun: Vec<u32>,
    }

    impl Outcomes for Collect {
        fn begin(&mut self, item: u32) {
            self.begun.push(item);
        }

        fn end(&mut self, _item: u32, entry: &[u8]) {
            self.bytes.extend(entry);
        }
    }

    fn run(arguments: &[u8], range: std::ops::Range<u32>, code: RunItems) -> Collect {
        let mut collect = Collect::default();
        code(&mut Items { arguments, range, outcomes: &mut collect, scratch: &mut Vec::new() });
        collect
    }

    fn code<F: Fn(A) -> R + Copy + Send + Sync + 'static, A: DeserializeOwned, R: Serialize>(
        _: F,
    ) -> RunItems {
        run_items::<F, A, R>
    }

    fn chunk(items: &[u64]) -> Vec<u8> {
        let mut bytes = Vec::new();
        items.iter().for_each(|item| push_item(&mut bytes, item).expect("encodes"));
        bytes
    }

    #[test]
    fn a_range_of_a_chunk_runs() {
        let done = run(&chunk(&[1, 2, 3, 400_000]), 1..4, code(|x: u64| x * 2));
        assert_eq!(done.begun, [1, 2, 3]);
        let mut results = Results::new(&done.bytes);
        assert_eq!([4, 6, 800_000].map(Ok), [(); 3].map(|()| results.next::<u64>()));
        assert!(results.next::<u64>().is_err());
    }

    #[test]
    fn a_panic_fails_its_item_alone() {
        let done = run(&chunk(&[1, 2, 3]), 0..3, code(|x: u64| if x == 2 { panic!("two") } else { x }));
        let mut results = Results::new(&done.bytes);
        assert_eq!(results.next(), Ok(1u64));
        assert!(
            matches!(results.next::<u64>(), Err(TaskError::Panicked { message, .. }) if message == "two")
        );
        assert_eq!(results.next(), Ok(3u64));
    }

    #[test]
    fn an_argument_of_another_type_fails_its_item_alone() {
        let mut bytes = chunk(&[7]);
        push_item(&mut bytes, &"text").expect("encodes");
        push_item(&mut bytes, &9u64).expect("encodes");
        let done = run(&bytes, 0..3, code(|x: u64| x));
        let mut results = Results::new(&done.bytes);
        assert_eq!(results.next(), Ok(7u64));
        assert!(matches!(results.next::<u64>(), Err(TaskError::Codec { .. })));
        assert_eq!(results.next(), Ok(9u64));
    }

    #[test]
    fn a_chunk_that_was_cut_off_fails_the_rest() {
        let bytes = chunk(&[1, 2, 3]);
        let done = run(&bytes[..bytes.len() - 1], 0..3, code(|x: u64| x));
        let mut results = Results::new(&done.bytes);
        assert_eq!(results.next(), Ok(1u64));
        assert_eq!(results.next(), Ok(2u64));
        assert!(matches!(results.next::<u64>(), Err(TaskError::Codec { .. })));
    }

    #[test]
    fn whole_outcomes_are_counted() {
        let done = run(&chunk(&[1, 2, 3]), 0..3, code(|x: u64| x));
        let len = done.bytes.len();
        assert_eq!(Results::whole(&done.bytes, 9), (3, len));
        assert_eq!(Results::whole(&done.bytes[..len - 1], 9), (2, len / 3 * 2));
        assert_eq!(Results::whole(&done.bytes, 1), (1, len / 3));
        assert_eq!(Results::whole(&[0xff; 8], 9), (0, 0));
    }

    #[test]
    fn a_value_that_does_not_serialise_leaves_the_chunk_as_it_was() {
        struct Refuses;
        impl Serialize for Refuses {
            fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(serde::ser::Error::custom("refused"))
            }
        }
        let mut bytes = chunk(&[1]);
        let before = bytes.clone();
        assert!(matches!(push_item(&mut bytes, &Refuses), Err(TaskError::Codec { .. })));
        assert_eq!(bytes, before);
    }
}
