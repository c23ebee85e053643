#!/usr/bin/env bash
# Usage: build.sh OUT - leaves the Rust workload as OUT/run.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)

if ! command -v protoc >/dev/null; then
    apt-get install -y --no-install-recommends protobuf-compiler
fi

cargo build --quiet --release --locked \
    --manifest-path "$here/Cargo.toml" --target-dir "$out/target"
cmp -s "$out/target/release/exercise" "$out/run" ||
    install "$out/target/release/exercise" "$out/run"
