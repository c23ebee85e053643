#!/usr/bin/env bash
# Usage: build.sh OUT - leaves the relay over HTTP/1 in Python, without any library, as OUT/run.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
if ! command -v python3 >/dev/null; then
    apt-get install -y --no-install-recommends python3
fi
cp "$here/main.py" "$out/main.py"
cat >"$out/run" <<'RUN'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
exec python3 "$here/main.py" "$@"
RUN
chmod +x "$out/run"
