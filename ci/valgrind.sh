#!/usr/bin/env bash
# The scribbling peer's test under valgrind: whatever another process writes into shared memory, nothing here reads or
# writes where it must not. Skipped where valgrind is missing, but not in a CI run.
set -eu
cd "$(dirname "$0")/.."
. ci/lib.sh

if ! command -v valgrind >/dev/null; then
    [ -z "${CI_RUN:-}" ] || { echo 'valgrind is missing' >&2; exit 1; }
    echo 'skipped: valgrind is not installed'
    exit 0
fi
# rustix's own system calls read the vDSO, which valgrind does not show; through the C library they work.
export RUSTFLAGS="--cfg rustix_use_libc"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/valgrind"
export SCRIBBLE_ROUNDS="${SCRIBBLE_ROUNDS:-20}"

build() {
    binary=$(cargo test --quiet -p shm-array --test scribble --no-run --message-format=json |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
}
step 'scribble, built for valgrind' build
step 'scribble under valgrind' limited 600 valgrind --quiet --error-exitcode=9 --trace-children=yes "$binary"
