#!/usr/bin/env bash
# Usage: build.sh OUT - leaves the HTTP workload in Node as OUT/run.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
if ! command -v node >/dev/null; then
    apt-get install -y --no-install-recommends nodejs
fi
cp "$here/web.js" "$out/"
printf '#!/bin/sh\nexec node "%s/web.js" "$@"\n' "$out" >"$out/run"
chmod +x "$out/run"
