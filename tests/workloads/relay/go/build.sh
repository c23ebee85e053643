#!/usr/bin/env bash
# Usage: build.sh OUT [GRPC_VERSION [GO_BUILD_FLAG...]] - leaves the Go relay as
# OUT/run, with grpc-go of that version if one is given.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
proto="$here/../../proto"
version=${2:-}
shift
[[ $# -gt 0 ]] && shift

stamp=$(cat "$here/build.sh" "$here/go.mod" "$here/go.sum" "$here/main.go" \
    "$proto/relay.proto" | sha256sum; go version; echo "$version" "$@")
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
go_grpc_options=module=tracewire.test/relay
if [[ -n "$version" ]]; then
    export GOFLAGS="-mod=mod -buildvcs=false"
    go mod edit -droptool=google.golang.org/grpc/cmd/protoc-gen-go-grpc \
        -droprequire=google.golang.org/grpc/cmd/protoc-gen-go-grpc \
        -require="google.golang.org/grpc@$version"
    # Generated code for grpc-go 1.64 asks for it; older ones need older code.
    GOBIN="$out/tools" go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.3.0
fi
PATH="$out/tools:$PATH" protoc -I "$proto" \
    --go_out="$out/src" --go_opt=module=tracewire.test/relay \
    --go-grpc_out="$out/src" --go-grpc_opt="$go_grpc_options" \
    "$proto/relay.proto"
[[ -z "$version" ]] || go mod tidy
go build "$@" -o "$out/run" .
printf '%s\n' "$stamp" >"$out/stamp"
