#!/usr/bin/env bash
# Usage: build.sh OUT - leaves the Python workload as OUT/run.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
proto="$here/../proto"

stamp=$(cat "$here/build.sh" "$here/requirements.txt" "$here/exercise.py" \
    "$proto/exercise.proto" | sha256sum)
if [[ -x "$out/run" && "$(cat "$out/stamp" 2>/dev/null)" == "$stamp" ]]; then
    exit 0
fi
rm -f "$out/stamp"

if ! cmp -s "$here/requirements.txt" "$out/venv/requirements.txt"; then
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        apt-get install -y --no-install-recommends python3 python3-venv
    fi
    rm -rf "$out/venv"
    python3 -m venv "$out/venv"
    "$out/venv/bin/pip" install --quiet --disable-pip-version-check \
        -r "$here/requirements.txt"
    cp "$here/requirements.txt" "$out/venv/requirements.txt"
fi

"$out/venv/bin/python" -m grpc_tools.protoc -I "$proto" \
    --python_out="$out" --grpc_python_out="$out" "$proto/exercise.proto"
cp "$here/exercise.py" "$out/exercise.py"

cat >"$out/run" <<'RUN'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
exec "$here/venv/bin/python" "$here/exercise.py" "$@"
RUN
chmod +x "$out/run"
printf '%s\n' "$stamp" >"$out/stamp"
