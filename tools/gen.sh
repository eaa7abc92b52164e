#!/bin/sh
# Regenerates the gRPC code from the .proto files. Needs protoc, protoc-gen-go and protoc-gen-go-grpc;
# the generated files are checked in, so that a build needs none of them.
set -eu
cd "$(dirname "$0")/.."
for proto in engine/cluster/clusterpb/cluster.proto engine/router/routerpb/router.proto; do
    protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative "$proto"
done
