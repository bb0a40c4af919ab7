#!/usr/bin/env bash
# The long forms of the tests: ci/nightly.sh [PART...]
#
# PART is one of the functions below without its "nightly_"; without any, all run, in this order. Each has a time limit far
# beyond what it and its building take, and all that is random prints its seed: NIGHTLY_SEED, or else today's date.
set -eu
cd "$(dirname "$0")/.."
. ci/lib.sh

# What cannot run on this machine fails, as in CI, instead of being skipped.
export CI_RUN=$$-$EPOCHSECONDS
seed=${NIGHTLY_SEED:-$(date +%Y%m%d)}
parts=(kill histories models every_instruction locks pools files loom)

# long SECONDS CRATE TEST NAME=VALUE...: one test binary with these variables, and what it has to say.
long() {
    local seconds=$1 crate=$2 test=$3
    shift 3
    step "$crate $test $*" limited "$seconds" env "$@" \
        cargo test --quiet -p "$crate" --all-features --test "$test" -- --nocapture --test-threads=1
}

# Processes of a queue are killed at random moments; the books must balance.
nightly_kill() { long 1800 ipc-queue kill KILLS=1000 KILL_MESSAGES=10000000 "KILL_SEED=$seed"; }

nightly_histories() { long 1800 ipc-queue linearizable HISTORIES=100000 "HISTORY_SEED=${seed}00000"; }

nightly_models() { long 1800 ipc-queue model LARGE_MODELS=1; }

nightly_every_instruction() { long 7200 ipc-queue every_instruction EVERY_INSTRUCTION=1; }

nightly_locks() {
    long 1800 shm-array kill KILLS=100000 "KILL_SEED=$seed"
    long 1800 shm-array scribble SCRIBBLE_ROUNDS=3000
}

nightly_pools() { long 3600 proc-pool pool_chaos CHAOS_RUNS=30; }

nightly_files() { step 'hash_tree proof' limited 1800 ci/hash_tree_proof.sh 20; }

nightly_loom() { LOOM_MAX_PREEMPTIONS=3 LOOM_SECONDS=14400 ci/loom.sh; }

[ $# -eq 0 ] || parts=("$@")
for part in "${parts[@]}"; do
    if ! declare -F "nightly_$part" >/dev/null; then
        echo "no part is called $part" >&2
        exit 2
    fi
done

printf 'NIGHTLY_SEED=%s\n' "$seed"
started=$EPOCHSECONDS
for part in "${parts[@]}"; do "nightly_$part"; done
printf '\nall passed in %s s\n' $((EPOCHSECONDS - started))
