#!/bin/sh
# Runs OpenAI's and Anthropic's official Python and JavaScript clients against a cluster of two instances on a free port, and the tests of
# the dashboard's figures.
set -eu
cd "$(dirname "$0")/../.."
work=.build/clients
mkdir -p "$work"
# Again when a pin changed. The stamp comes last, so that a broken installation is not taken for one.
if ! cmp -s tools/clients/requirements.txt "$work/requirements.txt"; then
    rm -rf "$work/venv"
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" install -q --disable-pip-version-check -r tools/clients/requirements.txt
    cp tools/clients/requirements.txt "$work/requirements.txt"
fi
if ! cmp -s tools/clients/package.json "$work/package.json.installed"; then
    rm -rf "$work/node_modules"
    cp tools/clients/package.json "$work/"
    (cd "$work" && npm install --silent --no-audit --no-fund --no-package-lock)
    cp tools/clients/package.json "$work/package.json.installed"
fi
cp tools/clients/client.mjs tools/clients/tools.mjs tools/clients/messages.mjs "$work/"

node tools/clients/dashboard.mjs

# Waits for the server that writes to this file, and says where it is.
address() { # file pid log
    for _ in $(seq 600); do
        url=$(sed -n 's/^serving on \(http[^ ]*\).*/\1/p' "$1" | head -n 1)
        [ -n "$url" ] && { echo "$url"; return; }
        kill -0 "$2" 2>/dev/null || { cat "$3" >&2; echo "clients: the server ended" >&2; return 1; }
        sleep 0.1
    done
    cat "$3" >&2
    echo "clients: the server did not start in 60 s" >&2
    return 1
}

# Calls of tools, in answers that are scripted.
go build -o "$work/scripted" ./tools/clients/scripted
: >"$work/scripted.out"
"$work/scripted" >"$work/scripted.out" 2>"$work/scripted.log" &
pid=$!
trap 'kill "$pid" 2>/dev/null; wait "$pid" 2>/dev/null || true' EXIT INT TERM
url=$(address "$work/scripted.out" "$pid" "$work/scripted.log")
"$work/venv/bin/python" tools/clients/tools.py "$url"
"$work/venv/bin/python" tools/clients/responses.py "$url"
"$work/venv/bin/python" tools/clients/messages.py "$url"
(cd "$work" && node tools.mjs "$url" && node messages.mjs "$url")
kill -INT "$pid"
wait "$pid"

log=$work/server.log
: >"$work/server.out" # a run before has left its address there
# Limits so small that a test reaches them.
bin/infinite serve --instances 2 --port 0 --cluster-port 0 --api-key test-key --served-model-name bundled,org/name \
    --kv-cache-memory 4MiB --max-num-seqs 8 --max-num-waiting 8 --max-body-size 64KiB \
    --chat-template tools/clients/chat.jinja >"$work/server.out" 2>"$log" &
pid=$!
trap 'kill "$pid" 2>/dev/null; wait "$pid" 2>/dev/null || true' EXIT INT TERM
url=$(address "$work/server.out" "$pid" "$log")

"$work/venv/bin/python" tools/clients/client.py "$url"
"$work/venv/bin/python" tools/clients/responses.py "$url"
"$work/venv/bin/python" tools/clients/messages.py "$url"
(cd "$work" && node client.mjs "$url" && node messages.mjs "$url")

kill -TERM "$pid"
trap - EXIT INT TERM
if wait "$pid"; then echo "clients: the server drained and exited 0"; else echo "clients: exit status $? after SIGTERM" >&2; exit 1; fi
