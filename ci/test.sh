#!/usr/bin/env bash
# The README's test command, under a time limit: a test that hangs fails. Building has its own.
set -eu
cd "$(dirname "$0")/.."
. ci/lib.sh

step 'tests, built' limited 1800 cargo test --quiet --workspace --all-features --no-run
step tests limited 1200 cargo test --workspace --all-features
