#!/usr/bin/env bash
# Usage: build.sh OUT - leaves the C++ workload as OUT/run.
set -euo pipefail

grpc_version=1.51.1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
proto="$here/../proto"

if ! pkg-config --exists grpc++ protobuf 2>/dev/null ||
    ! command -v g++ protoc grpc_cpp_plugin >/dev/null; then
    apt-get install -y --no-install-recommends g++ pkg-config libprotobuf-dev \
        protobuf-compiler "libgrpc++-dev=$grpc_version*" \
        "protobuf-compiler-grpc=$grpc_version*"
fi
found=$(pkg-config --modversion grpc++)
if [[ "$found" != "$grpc_version" ]]; then
    echo "grpc++ $found found, $grpc_version wanted" >&2
    exit 1
fi

stamp=$(cat "$here/build.sh" "$here/exercise.cc" "$proto/exercise.proto" |
    sha256sum; g++ --version | head -1; pkg-config --modversion grpc++ protobuf)
if [[ -x "$out/run" && "$(cat "$out/stamp" 2>/dev/null)" == "$stamp" ]]; then
    exit 0
fi
rm -f "$out/stamp"

mkdir -p "$out/gen"
protoc -I "$proto" --cpp_out="$out/gen" --grpc_out="$out/gen" \
    --plugin=protoc-gen-grpc="$(command -v grpc_cpp_plugin)" \
    "$proto/exercise.proto"
read -ra flags <<<"$(pkg-config --cflags --libs grpc++ protobuf)"
g++ -std=c++17 -O2 -Wall -Wextra -I "$out/gen" -o "$out/run" \
    "$here/exercise.cc" "$out/gen/exercise.pb.cc" "$out/gen/exercise.grpc.pb.cc" \
    "${flags[@]}" -pthread
printf '%s\n' "$stamp" >"$out/stamp"
