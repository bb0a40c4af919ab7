#!/usr/bin/env bash
# The loom models of the crates that own atomics, of the example that users start from, and of their guide.
# LOOM_MAX_PREEMPTIONS=3 explores more and takes much longer: LOOM_SECONDS limits
# each crate (900 without it).
set -eu
cd "$(dirname "$0")/.."
. ci/lib.sh

export RUSTFLAGS="--cfg loom"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/loom"
export LOOM_MAX_PREEMPTIONS="${LOOM_MAX_PREEMPTIONS:-2}"

for models in */tests/loom.rs examples/*/tests/loom.rs; do
    crate=$(basename "${models%/tests/loom.rs}")
    step "loom $crate" limited "${LOOM_SECONDS:-900}" cargo test --profile loom -p "$crate" --test loom
done
RUSTDOCFLAGS="$RUSTFLAGS" step "loom guide" limited 300 cargo test --profile loom -p ipc-queue --doc loom_guide
