#!/usr/bin/env bash
# The README's test command, under a time limit: a test that hangs fails.
set -eu
cd "$(dirname "$0")/.."
. ci/lib.sh

step tests limited 900 cargo test --workspace --all-features
