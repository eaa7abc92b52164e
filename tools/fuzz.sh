#!/bin/sh
# Runs every Go fuzz target for a while: tools/fuzz.sh 30s
set -eu
cd "$(dirname "$0")/.."
time=${1:-30s}
grep -rlE '^func Fuzz' --include='*_test.go' engine rdma | while read -r file; do
    grep -oE '^func Fuzz[A-Za-z0-9_]+' "$file" | sed 's/func //' | while read -r target; do
        echo "== ./$(dirname "$file") $target"
        go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 20x "./$(dirname "$file")"
    done
done
