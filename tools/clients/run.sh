#!/bin/sh
# Runs OpenAI's official Python and JavaScript clients against a cluster of two instances on a free port.
set -eu
cd "$(dirname "$0")/../.."
work=.build/clients
mkdir -p "$work"
if [ ! -x "$work/venv/bin/python" ] || ! "$work/venv/bin/python" -c 'import openai' 2>/dev/null; then
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" install -q -r tools/clients/requirements.txt
fi
cp tools/clients/package.json tools/clients/client.mjs "$work/"
[ -d "$work/node_modules/openai" ] || (cd "$work" && npm install --silent --no-audit --no-fund --no-package-lock)

log=$work/server.log
bin/infinite serve --instances 2 --port 0 --cluster-port 0 --api-key test-key --served-model-name bundled \
    --max-num-waiting 64 >"$work/server.out" 2>"$log" &
pid=$!
trap 'kill "$pid" 2>/dev/null; wait "$pid" 2>/dev/null || true' EXIT INT TERM
url=""
for _ in $(seq 600); do
    url=$(sed -n 's/^serving on \(http[^ ]*\).*/\1/p' "$work/server.out" | head -n 1)
    [ -n "$url" ] && break
    kill -0 "$pid" 2>/dev/null || { cat "$log"; echo "clients: the server ended" >&2; exit 1; }
    sleep 0.1
done
[ -n "$url" ] || { cat "$log"; echo "clients: the server did not start in 60 s" >&2; exit 1; }

"$work/venv/bin/python" tools/clients/client.py "$url"
(cd "$work" && node client.mjs "$url")

kill -TERM "$pid"
trap - EXIT INT TERM
if wait "$pid"; then echo "clients: the server drained and exited 0"; else echo "clients: exit status $? after SIGTERM" >&2; exit 1; fi
