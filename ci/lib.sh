# Sourced by the scripts beside it.

# step HEADING command...: prints the heading, runs the command, prints how long it took; stops the script if it fails.
step() {
    local heading=$1 start=$EPOCHSECONDS code=0
    shift
    printf '\n== %s\n' "$heading"
    "$@" || code=$?
    printf -- '-- %s: %s s\n' "$heading" $((EPOCHSECONDS - start))
    if [ "$code" -ne 0 ]; then
        printf '%s failed with exit code %s\n' "$heading" "$code" >&2
        exit "$code"
    fi
}

# limited SECONDS command...: ends a command that hangs, and everything in its process group, for certain.
limited() {
    local seconds=$1
    shift
    timeout --kill-after=10 "$seconds" "$@" </dev/null
}
