//! Runs the Python rivals: a script of this crate, handed to `python3 -c`.

use crate::run::Failure;
use std::io::ErrorKind;
use std::process::{Command, Stdio};

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
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::Broken(format!(
            "python3 ended with {}: {}",
            output.status,
            stderr.trim()
        )));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
