#!/usr/bin/env bash
# Usage: build.sh OUT - leaves the Node relay as OUT/run.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
proto="$here/../../proto"

stamp=$(cat "$here/build.sh" "$here/package.json" "$here/package-lock.json" \
    "$here/main.js" "$proto/relay.proto" | sha256sum)
if [[ -x "$out/run" && "$(cat "$out/stamp" 2>/dev/null)" == "$stamp" ]]; then
    exit 0
fi
rm -f "$out/stamp"

if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    apt-get install -y --no-install-recommends nodejs npm
fi
if ! cmp -s "$here/package-lock.json" "$out/node_modules/.pinned"; then
    cp "$here/package.json" "$here/package-lock.json" "$out/"
    (cd "$out" && npm ci --no-audit --no-fund --no-progress \
        --loglevel=error --ignore-scripts)
    cp "$here/package-lock.json" "$out/node_modules/.pinned"
fi
cp "$here/main.js" "$proto/relay.proto" "$out/"

cat >"$out/run" <<'RUN'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
exec node "$here/main.js" "$@"
RUN
chmod +x "$out/run"
printf '%s\n' "$stamp" >"$out/stamp"
