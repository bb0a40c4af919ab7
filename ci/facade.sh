#!/usr/bin/env bash
# Only shm_core::sync names atomics, cells and spin hints: everything else must be reachable by loom. Doc examples may, and
# the two files that are about atomics as users' data.
set -eu
cd "$(dirname "$0")/.."
found=$(git grep -nE '(core|std)::(sync::atomic|cell::UnsafeCell|hint::spin_loop|thread::yield_now)' -- '*/src/*.rs' \
    ':!shm-core/src/sync/' ':!shm-core/src/portable.rs' ':!shm-array/src/array/atomic.rs' ':!bench/' ':!examples/' |
    grep -vE '^[^:]*:[0-9]*: *//' || true)
[ -z "$found" ] && exit 0
printf 'use shm_core::sync instead:\n%s\n' "$found" >&2
exit 1
