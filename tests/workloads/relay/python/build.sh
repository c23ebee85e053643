#!/usr/bin/env bash
# Usage: build.sh OUT [GRPCIO_VERSION] - leaves the Python relay as OUT/run.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
proto="$here/../../proto"
version=${2:-1.85.1}

stamp=$(cat "$here/build.sh" "$here/main.py" "$proto/relay.proto" | sha256sum; echo "$version")
if [[ -x "$out/run" && "$(cat "$out/stamp" 2>/dev/null)" == "$stamp" ]]; then
    exit 0
fi
rm -f "$out/stamp"

if [[ "$(cat "$out/venv/version" 2>/dev/null)" != "$version" ]]; then
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        apt-get install -y --no-install-recommends python3 python3-venv
    fi
    rm -rf "$out/venv"
    python3 -m venv "$out/venv"
    "$out/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: \
        "grpcio==$version" "grpcio-tools==$version" setuptools
    printf '%s\n' "$version" >"$out/venv/version"
fi

"$out/venv/bin/python" -m grpc_tools.protoc -I "$proto" \
    --python_out="$out" --grpc_python_out="$out" "$proto/relay.proto"
cp "$here/main.py" "$out/main.py"

cat >"$out/run" <<'RUN'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
exec "$here/venv/bin/python" "$here/main.py" "$@"
RUN
chmod +x "$out/run"
printf '%s\n' "$stamp" >"$out/stamp"
