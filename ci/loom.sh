#!/usr/bin/env bash
# The loom models of the crates that own atomics. LOOM_MAX_PREEMPTIONS=3 explores more and takes much longer: LOOM_SECONDS limits
# each crate (900 without it).
set -eu
cd "$(dirname "$0")/.."
. ci/lib.sh

export RUSTFLAGS="--cfg loom"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/loom"
export LOOM_MAX_PREEMPTIONS="${LOOM_MAX_PREEMPTIONS:-2}"

for models in */tests/loom.rs; do
    crate=${models%%/*}
    step "loom $crate" limited "${LOOM_SECONDS:-900}" cargo test --profile loom -p "$crate" --test loom
done
