#!/usr/bin/env bash
# The documentation of all crates, without a warning.
set -eu
cd "$(dirname "$0")/.."
. ci/lib.sh

export RUSTDOCFLAGS="-D warnings"
step docs cargo doc --quiet --workspace --no-deps --all-features
