#!/bin/sh
# The end of what makes a file to carry: NAME's FILE.new becomes FILE, unless it is larger than MOST MiB.
#
#   tools/cuda/keep.sh NAME FILE MOST
set -eu
bytes=$(wc -c <"$2.new")
if [ "$bytes" -gt $(($3 * 1048576)) ]; then
    echo "$1: $bytes bytes are more than $3 MiB; they are in $2.new" >&2
    exit 1
fi
mv "$2.new" "$2"
echo "$1: $2, $(((bytes + 524288) / 1048576)) MiB"
