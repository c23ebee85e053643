#!/usr/bin/env bash
# Usage: build.sh OUT [strip] - leaves the Rust relay as OUT/run, without symbols if asked.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)

if ! command -v protoc >/dev/null; then
    apt-get install -y --no-install-recommends protobuf-compiler
fi

if [[ "${2:-}" == strip ]]; then
    export CARGO_PROFILE_RELEASE_STRIP=symbols
fi
cargo build --quiet --release --locked --manifest-path "$here/Cargo.toml" --target-dir "$out/target"
cmp -s "$out/target/release/relay" "$out/run" ||
    install "$out/target/release/relay" "$out/run"
