# make run     set up, build, start a cluster, answer a prompt larger than any one instance's KV cache,
#              show where its KV lay, serve on :8000 (ONCE=1: stop after the sample)
# make test    set up, lint, run the tests
# make test-all  the same with the longest tests whole: all outages over verbs and between hosts, more rounds
# make build   bin/infinite
.DELETE_ON_ERROR:
SHELL := /bin/sh
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
GO ?= go
STATICCHECK := honnef.co/go/tools/cmd/staticcheck
export CGO_ENABLED := 1
# go-nvml warns of the driver's old names, and leaves its functions to be found when they are first called,
# which a linker that binds all at start (Ubuntu's default) would make an error on machines without a GPU.
export CGO_CFLAGS := -O2 -g -Wno-deprecated-declarations
export CGO_LDFLAGS := -O2 -g -Wl,-z,lazy

.PHONY: all build run test lint lint-go lint-c setup setup-test lib ctest asan tsan gotest clients fuzz bench clean

all: build

setup:
	@tools/setup.sh build

setup-test:
	@tools/setup.sh test

lib: setup
	@cmake --preset cpu >/dev/null
	@cmake --build --preset cpu -j $(JOBS)

build: lib
	@mkdir -p bin
	$(GO) build -o bin/infinite ./engine/cmd/infinite

.PHONY: cuda build-cuda cuda-tests
# libinfinite_cuda.so beside the program; what else runs on a GPU machine is compiled, too. Installs nvcc into .build
# where there is none.
cuda: setup
	@tools/cuda/toolkit.sh >/dev/null
	@tools/cuda/build.sh .build/cuda library
	@tools/cuda/build.sh .build/cuda-check check
	@mkdir -p bin && cp .build/cuda/libinfinite_cuda.so bin/

# bin/infinite-cuda, which finds the machine's GPUs. It takes cuda.h of CUDA 11 or 12 (CUDA_HOME's, if set) and
# libcuda or its stub (in CUDA_STUBS, if set) to build, and the driver's libcuda.so.1 to start.
build-cuda: lib
	@mkdir -p bin
	@$(WITH_CUDA) && $(GO) build -tags cuda -o bin/infinite-cuda ./engine/cmd/infinite

# The Go tests that use a GPU, for a machine without Go (tools/cuda/pack.sh).
CUDA_TESTS ?= .build/cuda-tests
cuda-tests: lib
	@mkdir -p $(CUDA_TESTS)
	@$(WITH_CUDA) && for package in cmd/infinite device; do \
	    $(GO) test -c -tags cuda -ldflags "-s -w" -o $(CUDA_TESTS)/$${package#*/}.test ./engine/$$package || exit 1; done

WITH_CUDA = stubs=$${CUDA_STUBS:-$$(ls -d $${CUDA_HOME:-/usr/local/cuda}/lib64/stubs $${CUDA_HOME:-/usr/local/cuda}/targets/*/lib/stubs /usr/lib/*-linux-gnu/stubs 2>/dev/null | head -1)}; \
    export CGO_CFLAGS="$(CGO_CFLAGS)$${CUDA_HOME:+ -I$$CUDA_HOME/include}" CGO_LDFLAGS="$(CGO_LDFLAGS)$${stubs:+ -L$$stubs}"

run: build
	@bin/infinite sample $(if $(ONCE),--once)

test: setup-test lint ctest asan tsan cuda gotest clients rdma-test

.PHONY: test-all
test-all:
	+@$(MAKE) --no-print-directory TEST_ALL=1 test

lint: lint-go lint-c

lint-go: lib
	@unformatted=$$(gofmt -l engine rdma bench tools 2>/dev/null); \
	    if [ -n "$$unformatted" ]; then echo "gofmt would change:" $$unformatted; exit 1; fi
	$(GO) vet ./...
	$(GO) tool $(STATICCHECK) ./...

lint-c: lib
	@find csrc bench -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' -o -name '*.cc' | xargs clang-format-14 --dry-run -Werror
	@find csrc -name '*.c' -not -path '*/tests/*' -not -name stub.c | \
	    xargs -P $(JOBS) -n 4 clang-tidy-14 --quiet -p .build/cpu 2>.build/clang-tidy.log || { cat .build/clang-tidy.log; exit 1; }

# The emulated CUDA kernels' own tests are the address sanitizer's (make asan).
ctest: lib
	@cmake --build --preset cpu --target cuda_steps -j $(JOBS)
	ctest --preset cpu -j $(JOBS) -LE kernels

asan: setup
	@cmake --preset asan >/dev/null
	@cmake --build --preset asan --target all cuda_emulated -j $(JOBS)
	ctest --preset asan -j $(JOBS)
	$(GO) test -asan -count=1 ./engine/device ./rdma

tsan: setup
	@cmake --preset tsan >/dev/null
	@cmake --build --preset tsan -j $(JOBS)
	ctest --preset tsan -j $(JOBS) -LE serial

# The program's tests wait for processes more than they compute, and so run in two parts beside each other and the
# packages'; PARTS=1: one after another. The parts by themselves build nothing.
PARTS ?= 3
PROGRAM := ./engine/cmd/infinite
GO_TEST := $(GO) test -count=1 -timeout 30m
.PHONY: gotest-gpu gotest-packages gotest-race gotest-exactness gotest-program
gotest: build
	@cmake --build --preset cpu --target infinite_cuda_emu -j $(JOBS)
	@+$(MAKE) --no-print-directory -j $(PARTS) gotest-exactness gotest-program gotest-packages gotest-gpu gotest-race
gotest-exactness:
	$(GO_TEST) -run Exactness $(PROGRAM)
gotest-program:
	$(GO_TEST) -skip Exactness $(PROGRAM)
gotest-packages:
	$(GO_TEST) $$($(GO) list ./... | grep -v /cmd/infinite$$)
gotest-gpu:
	INFINITE_CUDA_LIBRARY=$(CURDIR)/.build/cpu/libinfinite_cuda_emu.so $(GO_TEST) -run GPU ./engine/device
gotest-race:
	$(GO_TEST) -race ./engine ./engine/cluster ./engine/kvcache ./engine/router ./engine/sched ./engine/server ./engine/top/live

# The official OpenAI and Anthropic clients against a running server.
clients: build
	@tools/clients/run.sh

# The suites over RDMA verbs, and clusters of three instances, in a guest with Soft-RoCE. Skipped where none can be
# had, unless CI is set or RDMA_TEST=required.
.PHONY: rdma-test
rdma-test: lib
	@tools/guest/test.sh

# A longer fuzz of every target; go test runs their seeds.
FUZZTIME ?= 30s
fuzz: lib
	@tools/fuzz.sh $(FUZZTIME)

# What share of the machine's bandwidth and arithmetic the kernels reach.
bench: lib
	@cmake --build --preset cpu --target bench_kernels bench_wakeups >/dev/null
	@.build/cpu/bench_kernels 1
	@.build/cpu/bench_kernels $(JOBS)
	@.build/cpu/bench_kernels 1 products
	@.build/cpu/bench_wakeups
	@$(GO) test ./engine -run '^$$' -bench 'BenchmarkStep$$' -benchtime 3000x

clean:
	rm -rf .build bin
