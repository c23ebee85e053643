#!/usr/bin/env bash
# Usage: build.sh OUT - leaves exchange.py as OUT/run, which is told a version
# of OpenSSL first: "3", the system's, or "1.1.1", of which a wheel has a copy.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)

if ! command -v python3 >/dev/null; then
    apt-get install -y --no-install-recommends python3 python3-pip
fi
if [[ ! -e "$out/psycopg2_binary.libs" ]]; then
    rm -rf "$out/wheel"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --python-version 3.11 --platform manylinux2014_x86_64 --dest "$out/wheel" psycopg2-binary==2.9.5
    python3 -m zipfile -e "$out"/wheel/*.whl "$out/wheel/all"
    mv "$out/wheel/all/psycopg2_binary.libs" "$out/"
    rm -rf "$out/wheel"
fi
cp "$here/exchange.py" "$out/exchange.py"
cat >"$out/run" <<'RUN'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
case "$1" in
3) EXERCISE_LIBSSL=libssl.so.3 ;;
*)
    EXERCISE_LIBSSL=$(echo "$here"/psycopg2_binary.libs/libssl-*.so.1.1)
    export LD_LIBRARY_PATH="$here/psycopg2_binary.libs"
    ;;
esac
export EXERCISE_LIBSSL
shift
exec python3 "$here/exchange.py" "$@"
RUN
chmod +x "$out/run"
