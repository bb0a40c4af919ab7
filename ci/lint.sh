#!/usr/bin/env bash
# Formatting, the facade rule and clippy, in both workspaces.
set -eu
cd "$(dirname "$0")/.."
. ci/lib.sh

for manifest in Cargo.toml bench/Cargo.toml; do
    step "fmt $manifest" cargo fmt --manifest-path "$manifest" --all -- --check
done
step facade ci/facade.sh
for manifest in Cargo.toml bench/Cargo.toml; do
    step "clippy $manifest" cargo clippy --quiet --manifest-path "$manifest" --workspace --all-targets --all-features -- -D warnings
done
