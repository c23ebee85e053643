#!/usr/bin/env bash
# Usage: build.sh OUT - leaves the Go workload as OUT/run.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
proto="$here/../proto"

stamp=$(cat "$here/build.sh" "$here/go.mod" "$here/go.sum" "$here/main.go" \
    "$proto/exercise.proto" | sha256sum; go version)
if [[ -x "$out/run" && "$(cat "$out/stamp" 2>/dev/null)" == "$stamp" ]]; then
    exit 0
fi
rm -f "$out/stamp"

if ! command -v protoc >/dev/null; then
    apt-get install -y --no-install-recommends protobuf-compiler
fi

mkdir -p "$out/src/pb" "$out/tools"
cp "$here/go.mod" "$here/go.sum" "$here/main.go" "$out/src/"
cd "$out/src"
export GOFLAGS="-mod=readonly -buildvcs=false" GOWORK=off
go build -o "$out/tools/" tool
PATH="$out/tools:$PATH" protoc -I "$proto" \
    --go_out="$out/src" --go_opt=module=tracewire.test/exercise \
    --go-grpc_out="$out/src" --go-grpc_opt=module=tracewire.test/exercise \
    "$proto/exercise.proto"
go build -o "$out/run" .
printf '%s\n' "$stamp" >"$out/stamp"
