//! A panic in a child becomes data.
//!
//! The panic hook prints as usual and leaves message, place and backtrace with the panicking thread; whoever
//! catches the panic ([`catch`]) takes them from there.

use crate::error::{TaskError, cut};
use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Longest message, in bytes; longer ones are cut.
const MAX_MESSAGE: usize = 8 << 10;
/// Longest backtrace, in bytes.
const MAX_BACKTRACE: usize = 16 << 10;
/// Longest place, in bytes.
const MAX_LOCATION: usize = 1 << 10;

struct Record {
    location: Option<String>,
    backtrace: Option<String>,
}

thread_local! {
    static LAST: RefCell<Option<Record>> = const { RefCell::new(None) };
}

/// Puts the recording hook before the one that is set.
pub(crate) fn install_hook() {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let backtrace = Backtrace::capture();
        let record = Record {
            location: info.location().map(|at| cut(at.to_string(), MAX_LOCATION)),
            backtrace: (backtrace.status() == BacktraceStatus::Captured)
                .then(|| cut(backtrace.to_string(), MAX_BACKTRACE)),
        };
        // A panic while the thread's storage goes away has nowhere to be recorded.
        let _ = LAST.try_with(|last| last.replace(Some(record)));
        previous(info);
    }));
}

/// Calls `f`; a panic in it comes back as [`TaskError::Panicked`].
pub(crate) fn catch<R>(f: impl FnOnce() -> R) -> Result<R, TaskError> {
    LAST.with_borrow_mut(|last| *last = None);
    // The closure's state is dropped with the panic; what user code shares beyond it is the user's business, as with
    // a thread that panicked.
    catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
        let record = LAST.with_borrow_mut(Option::take);
        let message = cut(message(&*payload), MAX_MESSAGE);
        // A payload whose drop panics must not end the process.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(payload)));
        let (location, backtrace) = record.map_or((None, None), |record| (record.location, record.backtrace));
        TaskError::Panicked { message, location, backtrace }
    })
}

fn message(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&'static str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "(a panic payload that is not a string)".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_comes_back_with_its_message() {
        let error = catch(|| panic!("{} is too much", 7)).expect_err("it panicked");
        assert!(matches!(error, TaskError::Panicked { message, .. } if message == "7 is too much"));
    }

    #[test]
    fn a_payload_that_is_no_string_gets_a_placeholder() {
        let error = catch(|| std::panic::panic_any(7u8)).expect_err("it panicked");
        assert!(matches!(error, TaskError::Panicked { message, .. } if message.contains("not a string")));
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let text = cut("ä".repeat(MAX_MESSAGE), MAX_MESSAGE - 1);
        assert_eq!(text.len(), MAX_MESSAGE - 2);
    }
}
