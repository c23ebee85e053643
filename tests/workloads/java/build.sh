#!/usr/bin/env bash
# Usage: build.sh OUT - leaves the Java workload as OUT/run.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
proto="$here/../proto"

stamp=$(find "$here/build.sh" "$here/pom.xml" "$here/src" \
    "$proto/exercise.proto" -type f -print0 | sort -z | xargs -0 cat | sha256sum)
if [[ -x "$out/run" && "$(cat "$out/stamp" 2>/dev/null)" == "$stamp" ]]; then
    exit 0
fi
rm -f "$out/stamp"

if ! command -v javac >/dev/null; then
    apt-get install -y --no-install-recommends openjdk-17-jdk-headless
fi
if ! command -v mvn >/dev/null; then
    apt-get install -y --no-install-recommends maven
fi
rm -rf "$out/target" "$out/lib"
# What was downloaded before is enough, unless it is not.
build=(mvn -q -B -Dstyle.color=never -f "$here/pom.xml" -Dout="$out" package)
"${build[@]}" -o >"$out/offline.log" 2>&1 || "${build[@]}"

cat >"$out/run" <<'RUN'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
exec java -Xmx256m -Xlog:disable -Xlog:all=warning:stderr "-XX:SharedArchiveFile=$here/$1.jsa" \
    -cp "$here/target/exercise.jar:$here/lib/*" tracewire.test.exercise.Main "$@"
RUN
chmod +x "$out/run"

# One run of both sides leaves archives of the classes they load, so that the
# next ones start in half the time; without archives they work the same.
archive=$(mktemp -d)
server=
trap '[[ -z "$server" ]] || kill "$server" 2>/dev/null || true; rm -rf "$archive"' EXIT
rm -f "$out"/*.jsa
sed 's/-Xlog:all=warning:stderr//; s/-XX:SharedArchiveFile/-XX:ArchiveClassesAtExit/' \
    "$out/run" >"$out/archive"
chmod +x "$out/archive"
mkfifo "$archive/ready"
"$out/archive" server --listen "unix:$archive/socket" --log "$archive/log" >"$archive/ready" &
server=$!
read -r -t 60 _ <"$archive/ready"
"$out/archive" client --target "unix:$archive/socket" --scenario mixed --calls 20 \
    --concurrency 4 --connections 2 --log "$archive/log"
kill "$server"
wait "$server" || true
server=
printf '%s\n' "$stamp" >"$out/stamp"
