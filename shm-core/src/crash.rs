//! Named crash points: steps at which a test lets a process kill itself.
//!
//! `crash_point!("ring.push.claimed")` compiles to nothing unless the feature `crash-points` is on. With it, a
//! process whose environment has `SHM_CRASH_POINT=ring.push.claimed` (optionally `:N` for the N-th passage,
//! counted from 1) sends itself SIGKILL there. The variable is read once, at the first crash point reached; `arm` overrides
//! it.
//!
//! In a loom model each is a step at which a killed process may die, with or without the feature: see
//! `owner::model::Process`.

/// Marks a step at which a test may kill the process; nothing without the feature `crash-points`.
#[cfg(not(any(feature = "crash-points", loom)))]
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {};
}

/// Marks a step at which a test may kill the process.
#[cfg(any(feature = "crash-points", loom))]
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {
        $crate::crash::reached($name)
    };
}

#[cfg(loom)]
pub use crate::owner::model::step as reached;

/// What the process was told; leaked, so that a forked child has it too.
#[cfg(all(feature = "crash-points", not(loom)))]
struct Target {
    name: String,
    passage: u64,
    passed: crate::sync::AtomicU64,
}

#[cfg(all(feature = "crash-points", not(loom)))]
static TARGET: crate::sync::AtomicPtr<Target> = crate::sync::AtomicPtr::new(std::ptr::null_mut());

/// Tells this process, and children that it forks from here on, to die at the `passage`-th passage (from 1) through the
/// step `name`, whatever the environment says.
#[cfg(all(feature = "crash-points", not(loom)))]
pub fn arm(name: &str, passage: u64) {
    // The one before stays: somebody may be reading it.
    TARGET.store(Target::leak(name, passage), crate::sync::Ordering::Release);
}

#[cfg(all(feature = "crash-points", not(loom)))]
impl Target {
    fn leak(name: &str, passage: u64) -> *mut Self {
        Box::leak(Box::new(Self { name: name.to_owned(), passage, passed: crate::sync::AtomicU64::new(0) }))
    }
}

/// Kills the process if it was told to die at the step `name`.
#[cfg(all(feature = "crash-points", not(loom)))]
#[allow(unsafe_code)]
pub fn reached(name: &str) {
    use crate::sync::Ordering;

    if TARGET.load(Ordering::Acquire).is_null() {
        let text = std::env::var("SHM_CRASH_POINT").unwrap_or_default();
        let (name, passage) = text.rsplit_once(':').unwrap_or((&text, "1"));
        let told = Target::leak(name, passage.parse().unwrap_or(0));
        // Of several threads that are here first, one decides.
        let _ = TARGET.compare_exchange(std::ptr::null_mut(), told, Ordering::AcqRel, Ordering::Relaxed);
    }
    // SAFETY: set above or before, to something that is never freed.
    let target = unsafe { &*TARGET.load(Ordering::Acquire) };
    if target.name == name && target.passed.fetch_add(1, Ordering::Relaxed) + 1 == target.passage {
        let me = rustix::process::getpid();
        rustix::process::kill_process(me, rustix::process::Signal::KILL).expect("a process may kill itself");
        loop {
            crate::sync::hint::spin_loop();
        }
    }
}
