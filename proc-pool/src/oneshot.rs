//! The child's side of a [`Process`](crate::Process): one function, called once.
#![allow(unsafe_code)]
//! # Safety
//!
//! A name of the type [`OneShot`] is made by [`code_of`] only, which has a value of the function type in its hands.
//! That is what [`conjure`] demands.

use crate::control::{self, ToParent};
use crate::error::{Result, TaskError};
use crate::function::{Code, Signature, conjure};
use crate::panic;
use crate::payload::{Packed, Payload};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shm_core::fork::ForkStamp;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Decodes an argument, calls a function, encodes its result.
pub(crate) type OneShot = unsafe fn(Payload) -> std::result::Result<Payload, TaskError>;

// SAFETY: a function pointer.
unsafe impl Signature for OneShot {}

/// The exit code of a process whose function panicked: that of a Rust program whose `main` panicked.
const PANICKED: i32 = 101;
/// The exit code of a process whose argument or result could not travel.
const FAILED: i32 = 1;

/// Names the trampoline of `function`.
///
/// # Errors
///
/// `is_foreign_function`.
pub(crate) fn code_of<F, A, R>(function: &F, label: &str) -> Result<Code<OneShot>>
where
    F: Fn(A) -> R + Copy + Send + Sync + 'static,
    A: DeserializeOwned,
    R: Serialize,
{
    // It is enough that there is one.
    let _: &F = function;
    Code::of(trampoline::<F, A, R> as OneShot, label)
}

/// # Safety
///
/// As for [`conjure`]: a value of `F` exists or existed in a process of this image.
unsafe fn trampoline<F, A, R>(argument: Payload) -> std::result::Result<Payload, TaskError>
where
    F: Fn(A) -> R + Copy + Send + Sync + 'static,
    A: DeserializeOwned,
    R: Serialize,
{
    // SAFETY: by the contract of this function.
    let function: F = unsafe { conjure() };
    let result = function(argument.decode("the argument")?);
    Payload::encode(&result, "the result")
}

/// Calls the function, tells the parent how it went, and exits. Runs user code: argument's `Deserialize`, function,
/// result's `Serialize` and drop; a panic in any of them is the function's.
pub(crate) fn run(
    socket: BorrowedFd<'_>,
    code: Code<OneShot>,
    argument: Packed,
    descriptors: Vec<OwnedFd>,
) -> ! {
    let myself = ForkStamp::now();
    let outcome = call(code, argument, descriptors)
        .and_then(|result| result.pack().map_err(|error| TaskError::unavailable(error.to_string())));
    let (message, descriptors, exit) = match outcome {
        Ok((result, descriptors)) => (ToParent::Done { result }, descriptors, 0),
        Err(error) => {
            let exit = if matches!(error, TaskError::Panicked { .. }) { PANICKED } else { FAILED };
            (ToParent::Failed(error), Vec::new(), exit)
        }
    };
    if myself.check().is_err() {
        // The function forked, and this is the copy: the answer is the original's to give.
        std::process::exit(exit)
    }
    // It fits into the socket's buffer, so nobody has to read it before this process ends.
    match control::send(socket, &message, &descriptors, None) {
        Ok(()) => std::process::exit(exit),
        Err(error) => {
            eprintln!("proc-pool: the result cannot be sent: {error}");
            std::process::exit(FAILED)
        }
    }
}

fn call(
    code: Code<OneShot>,
    argument: Packed,
    descriptors: Vec<OwnedFd>,
) -> std::result::Result<Payload, TaskError> {
    let function = code.resolve().map_err(|error| TaskError::unavailable(error.to_string()))?;
    let argument = Payload::unpack(argument, descriptors)?;
    // SAFETY: the name came over the control socket from a process of this image, where `code_of` made it.
    panic::catch(|| unsafe { function(argument) })?
}
