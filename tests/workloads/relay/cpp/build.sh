#!/usr/bin/env bash
# Usage: build.sh OUT - leaves the C++ relay as OUT/run.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
proto="$here/../../proto"

if ! pkg-config --exists grpc++ protobuf 2>/dev/null ||
    ! command -v g++ protoc grpc_cpp_plugin >/dev/null; then
    apt-get install -y --no-install-recommends g++ pkg-config libprotobuf-dev \
        protobuf-compiler libgrpc++-dev protobuf-compiler-grpc
fi

stamp=$(cat "$here/build.sh" "$here/main.cc" "$proto/relay.proto" |
    sha256sum; g++ --version | head -1; pkg-config --modversion grpc++ protobuf)
if [[ -x "$out/run" && "$(cat "$out/stamp" 2>/dev/null)" == "$stamp" ]]; then
    exit 0
fi
rm -f "$out/stamp"

mkdir -p "$out/gen"
protoc -I "$proto" --cpp_out="$out/gen" --grpc_out="$out/gen" \
    --plugin=protoc-gen-grpc="$(command -v grpc_cpp_plugin)" \
    "$proto/relay.proto"
read -ra flags <<<"$(pkg-config --cflags --libs grpc++ protobuf)"
g++ -std=c++17 -O1 -Wall -Wextra -I "$out/gen" -o "$out/run" \
    "$here/main.cc" "$out/gen/relay.pb.cc" "$out/gen/relay.grpc.pb.cc" \
    "${flags[@]}" -pthread
printf '%s\n' "$stamp" >"$out/stamp"
