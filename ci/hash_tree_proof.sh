#!/usr/bin/env bash
# Proves hash_tree against sha256sum: ci/hash_tree_proof.sh [ROUNDS]
#
# Builds a tree of 2,000 files (0 B to 8 MiB, awkward names), and ROUNDS times (default 20), without and with --chaos,
# compares the sorted output with that of sha256sum. Then: SIGINT and SIGKILL of the parent, and both wall times.
# Fails if an output differs, or if a process, a zombie or an entry of /dev/shm is left.
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C
rounds=${1:-20}
files=2000

cargo build --release --quiet -p examples --bin hash_tree
hash_tree=$(realpath "${CARGO_TARGET_DIR:-target}/release/hash_tree")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/tree
# Every process of the runs below carries this in its environment: that is how leftovers are found.
export HASH_TREE_PROOF=$$-${work##*.}
ls /dev/shm >"$work/shm.before"

fail() {
    printf 'hash_tree proof: %s\n' "$*" >&2
    exit 1
}

# Sizes and names are the same in every run; the bytes are random.
make_tree() {
    local i size dir seed=1
    mkdir -p "$tree"
    head -c $((8 << 20)) /dev/urandom >"$work/bytes"
    for ((i = 0; i < files; i++)); do
        seed=$(((seed * 1103515245 + 12345) & 0x7fffffff))
        case $((i % 100)) in
            0) size=0 ;;
            1) size=1 ;;
            2) size=$((8 << 20)) ;;
            [3-9]) size=$(((seed >> 8) % (2 << 20))) ;;
            [1-3]?) size=$(((seed >> 8) % (256 << 10))) ;;
            *) size=$(((seed >> 8) % (16 << 10))) ;;
        esac
        dir=$tree/d$((i % 37))/sub$((i % 3))
        [ -d "$dir" ] || mkdir -p "$dir"
        if [ "$size" -lt 8 ]; then
            head -c "$size" "$work/bytes"
        else # the number in front makes every content differ
            printf '%08d' "$i"
            head -c $((size - 8)) "$work/bytes"
        fi >"$dir/f$i"
    done
    local odd=$tree/odd
    mkdir -p "$odd/with space/$(printf 'new\nline')" "$odd/$(printf '\xc3\x28')" "$odd/empty"
    for name in 'a b' ' ' '-dash' '--help' 'back\slash' '\' $'new\nline' $'\n' $'carriage\rreturn' $'tab\t' $'\x01\x1b[31m' \
        $'\xff\xfe' $'latin-\xe9' 'ünïcode' "it's" 'q"uote' '*' '$(id)' '.hidden'; do
        printf '%s' "$name" >"$odd/$name"
        printf '%s' "$name" >"$odd/with space/$(printf 'new\nline')/$name"
    done
    # Neither links nor pipes are regular files.
    ln -s f0 "$tree/d0/link"
    ln -s . "$odd/loop"
    ln -s /nonexistent "$odd/dangling"
    mkfifo "$odd/pipe"
}

expect() { # DIR: the sorted truth
    find "$1" -type f -print0 | xargs -0 -r sha256sum | sort
}

# Processes of our runs; a killed one may take a moment to be torn down.
leftovers() {
    grep -lzsx "HASH_TREE_PROOF=$HASH_TREE_PROOF" /proc/[0-9]*/environ | grep -Eo '[0-9]+' |
        while read -r pid; do
            [ "$(readlink "/proc/$pid/exe" || true)" = "$hash_tree" ] && printf '%s ' "$pid"
        done || true
}

# A zombie has no environment any more, but its session. Workers that their parent did not collect would be seen here until
# init does.
session=$(ps -o sess= -p $$)
zombies() {
    ps -eo stat=,sess=,comm= | awk -v session="$session" '$1 ~ /^Z/ && $2 == session && $3 ~ /^(hash_tree|proc-pool)/' | wc -l
}

nothing_left() { # WHAT
    local _try
    for _try in $(seq 100); do
        [ -z "$(leftovers)" ] && return 0
        sleep 0.05
    done
    fail "after $1: processes left: $(leftovers)"
}

round() { # NAME, arguments
    local name=$1
    shift
    "$hash_tree" "$@" "$tree" >"$work/out" 2>"$work/err" || fail "$name: exit code $?: $(cat "$work/err")"
    sort "$work/out" | cmp - "$work/expected" || fail "$name: the output differs"
    [ -z "$(leftovers)" ] || fail "$name: processes left: $(leftovers)"
    [ "$(zombies)" -eq 0 ] || fail "$name: a zombie is left"
}

seconds() { # command: its wall time; stdout is dropped
    local start=$EPOCHREALTIME
    "$@" >/dev/null 2>&1
    awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.3f\n", b - a }'
}

best_of() { # TIMES, command
    local times=$1
    shift
    for _ in $(seq "$times"); do seconds "$@"; done | sort -n | head -n 1
}

make_tree
expect "$tree" >"$work/expected"
printf 'tree: %s files, %s\n' "$(wc -l <"$work/expected")" "$(du -sh --apparent-size "$tree" | cut -f1)"

killed=0
for i in $(seq "$rounds"); do
    round "round $i"
    round "chaos round $i" --chaos
    killed=$((killed + $(grep -c 'chaos: killed' "$work/err" || true)))
done
[ "$killed" -ge "$rounds" ] || fail "--chaos killed only $killed workers in $rounds rounds"
printf 'same output: %s rounds, and %s with %s workers killed\n' "$rounds" "$rounds" "$killed"

# The path prefixes are those of find, whatever DIR looks like.
(
    cd "$tree"
    ln -s odd alias
    for dir in . ./ .// odd odd/ odd// odd/. ./odd/../odd alias alias/ d0/sub0/f0; do
        "$hash_tree" -- "$dir" 2>/dev/null | sort | cmp - <(expect "$dir") || fail "DIR $dir: the output differs"
    done
    "$hash_tree" 2>/dev/null | sort | cmp - <(expect .) || fail "no DIR: the output differs"
)
echo 'same prefixes as find'

# The parent dies while each worker is in the middle of a file that takes for ever; nothing survives it.
mkdir "$work/endless"
for i in 1 2 3 4 5 6; do truncate -s 1T "$work/endless/$i"; done
for signal in INT TERM KILL; do
    # A background job of a script starts with SIGINT ignored; a terminal's foreground job does not.
    env --default-signal=INT "$hash_tree" --workers 3 "$work/endless" >"$work/out" 2>"$work/err" &
    parent=$!
    for _ in $(seq 200); do
        [ "$(leftovers | wc -w)" -ge 4 ] && break
        sleep 0.05
    done
    [ "$(leftovers | wc -w)" -ge 4 ] || fail "parent and workers do not run: $(cat "$work/err")"
    kill -"$signal" "$parent"
    code=0
    { wait "$parent" || code=$?; } 2>/dev/null # without the shell's own notice
    [ "$code" -eq $((128 + $(kill -l "$signal"))) ] || fail "SIG$signal: exit code $code"
    nothing_left "SIG$signal"
done
echo 'nothing survives SIGINT, SIGTERM, SIGKILL of the parent'

ls /dev/shm | diff "$work/shm.before" - || fail 'an entry is left in /dev/shm'

xargs_sum() { find "$tree" -type f -print0 | xargs -0 -P2 -n64 sha256sum; }
ours=$(best_of 5 "$hash_tree" "$tree")
theirs=$(best_of 5 xargs_sum)
printf 'wall time: hash_tree %s s, find | xargs -P2 -n64 sha256sum %s s, ratio %s (goal: at most 1.15)\n' "$ours" "$theirs" \
    "$(awk -v a="$ours" -v b="$theirs" 'BEGIN { printf "%.2f", a / b }')"
