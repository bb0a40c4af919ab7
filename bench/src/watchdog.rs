//! Ends the program when one run takes far too long; its children die with it.

use std::sync::Mutex;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

static WATCHED: Mutex<Option<(Instant, String)>> = Mutex::new(None);

/// Starts the watchdog's thread.
pub fn start() {
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let watched = WATCHED.lock().expect("no holder panics");
            if let Some((since, label)) = watched.as_ref()
                && since.elapsed() > LIMIT
            {
                eprintln!("\nno end of `{label}` after {} s", LIMIT.as_secs());
                std::process::exit(2);
            }
        }
    });
}

/// Names what runs from now on.
pub fn watch(label: &str) {
    *WATCHED.lock().expect("no holder panics") = Some((Instant::now(), label.to_owned()));
}

/// Nothing runs.
pub fn rest() {
    *WATCHED.lock().expect("no holder panics") = None;
}
