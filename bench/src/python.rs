//! Runs the Python rivals: a script of this crate, handed to `python3 -c`.

use crate::run::Failure;
use std::io::ErrorKind;
use std::process::{Command, Stdio};

/// What a script returns that needs a package which is not installed; its standard error names it.
const LACKS: i32 = 77;

/// Runs `script` with `args`; it prints a JSON list of nanoseconds.
pub fn run(script: &str, args: &[String]) -> Result<Vec<u64>, Failure> {
    let output = Command::new("python3")
        .arg("-c")
        .arg(script)
        .args(args)
        .stdin(Stdio::null())
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(Failure::Unavailable("python3 is not installed".into()));
        }
        Err(error) => return Err(error.into()),
    };
    let stderr = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(LACKS) {
        return Err(Failure::Unavailable(stderr.trim().to_owned()));
    }
    if !output.status.success() {
        return Err(Failure::Broken(format!(
            "python3 ended with {}: {}",
            output.status,
            stderr.trim()
        )));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
