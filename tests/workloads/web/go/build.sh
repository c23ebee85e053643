#!/usr/bin/env bash
# Usage: build.sh OUT - leaves the HTTP workload in Go as OUT/run.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
stamp=$(cat "$here/build.sh" "$here/go.mod" "$here/go.sum" "$here/main.go" | sha256sum; go version)
if [[ -x "$out/run" && "$(cat "$out/stamp" 2>/dev/null)" == "$stamp" ]]; then
    exit 0
fi
rm -f "$out/stamp"
cd "$here"
GOFLAGS="-mod=readonly -buildvcs=false" GOWORK=off go build -o "$out/run" .
printf '%s\n' "$stamp" >"$out/stamp"
