#!/usr/bin/env bash
# Usage: build.sh OUT - leaves the exchange by rustls as OUT/run.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)

cargo build --quiet --release --locked --manifest-path "$here/Cargo.toml" --target-dir "$out/target"
cmp -s "$out/target/release/exchange" "$out/run" ||
    install "$out/target/release/exchange" "$out/run"
