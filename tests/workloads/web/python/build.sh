#!/usr/bin/env bash
# Usage: build.sh OUT - leaves the HTTP workload in Python as OUT/run.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
if ! command -v python3 >/dev/null; then
    apt-get install -y --no-install-recommends python3
fi
cp "$here/web.py" "$out/"
# By the program itself: what stands before it on the path may be a script.
python=$(python3 -c 'import sys; print(sys.executable)')
printf '#!/bin/sh\nexec "%s" "%s/web.py" "$@"\n' "$python" "$out" >"$out/run"
chmod +x "$out/run"
