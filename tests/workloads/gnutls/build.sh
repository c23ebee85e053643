#!/usr/bin/env bash
# Makes `$1/run VERSION serve|client PORT`. As root it installs GnuTLS where it is missing.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$1
mkdir -p "$out"
python3 -c 'import ctypes; ctypes.CDLL("libgnutls.so.30")' 2>/dev/null ||
  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends libgnutls30 >/dev/null
cat >"$out/run" <<RUN
#!/usr/bin/env bash
shift
exec python3 "$here/exchange.py" "\$@"
RUN
chmod +x "$out/run"
