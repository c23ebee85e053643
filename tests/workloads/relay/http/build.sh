#!/usr/bin/env bash
# Usage: build.sh OUT [GO_BUILD_FLAG...] - leaves the net/http relay as OUT/run.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
cd "$here"
GOFLAGS="-mod=readonly -buildvcs=false" GOWORK=off go build "$@" -o "$out/run" .
