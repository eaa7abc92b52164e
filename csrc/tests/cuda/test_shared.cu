/* Pools that others copy into: within a process by their address, and a pool's end waits for its
 * users; what is of another process is opened by CUDA, or not at all, with a reason. How large a
 * pool is, is what the opening end finds out. */
#include "guarded.h"

#include <atomic>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/cuda/lane.h"

extern "C" int inf_cuda_backend_open_12(int32_t ordinal, const inf_device_config *config,
                                        uint64_t config_bytes, uint64_t ops_bytes,
                                        inf_backend **out, inf_err *err);

enum { POOL = 4 << 20 };

static inf_err err;
static uint64_t bytes; /* of the pool that was opened last */

static inf_backend *open_backend() {
    inf_device_config c = {};
    inf_backend *b = NULL;
    c.dtype = INF_DTYPE_BF16;
    CHECK(inf_cuda_backend_open_12(0, &c, sizeof c, sizeof(inf_backend_ops), &b, &err) == INF_OK,
          "%s", err.message);
    return b;
}

static inf_lane *open_lane(inf_backend *b) {
    inf_device_config dims = {};
    inf_lane_config c = {};
    inf_lane *lane = NULL;
    c.kind = INF_LANE_COPY;
    c.device = &dims;
    CHECK(b->ops->lane_open(b, &c, &lane, &err) == INF_OK, "%s", err.message);
    return lane;
}

/* Two instances of one process: b copies into a's pool. */
static void test_own(inf_backend *a, inf_backend *b) {
    const char *why = "";
    inf_pool_key key, again;
    uint8_t *pool = (uint8_t *)a->ops->alloc_pool(a, POOL);
    uint8_t *mine = (uint8_t *)b->ops->alloc_pool(b, POOL);
    CHECK(a->ops->pool_export(a, pool, &key, &why) == INF_OK, "%s", why);
    CHECK(a->ops->pool_export(a, pool, &again, &why) == INF_OK &&
              memcmp(&key, &again, sizeof key) == 0,
          "another peer gets the same key");
    CHECK(a->ops->pool_export(a, pool + 512, &again, &why) != INF_OK &&
              strstr(why, "no pool begins") != NULL,
          "no pool begins there");
    uint8_t *far = b->ops->pool_open(b, &key, &bytes, &why);
    CHECK(far == pool && bytes == POOL, "%s", why);
    std::vector<uint8_t> sent(1 << 16), got(1 << 16);
    for (uint8_t &x : sent) {
        x = (uint8_t)next_u64();
    }
    inf_lane *lane = open_lane(b);
    b->ops->copy_in(lane, mine + 4096, sent.data(), sent.size());
    b->ops->copy(lane, far + 8192, mine + 4096, sent.size());
    CHECK(b->ops->sync(lane, &err) == INF_OK, "%s", err.message);
    must(cudaMemcpy(got.data(), pool + 8192, got.size(), cudaMemcpyDeviceToHost), "cudaMemcpy");
    CHECK(got == sent, "the copy");
    b->ops->lane_close(lane);
    b->ops->pool_close(b, &key, far);
    a->ops->free_pool(a, pool, POOL);
    CHECK(b->ops->pool_open(b, &key, &bytes, &why) == NULL && strcmp(why, "the pool is over") == 0,
          "a pool that is over");
    b->ops->free_pool(b, mine, POOL);
}

struct closer {
    inf_backend *b;
    const inf_pool_key *key;
    uint8_t *pool;
    std::atomic<int> closed;
};

static void *close_later(void *arg) {
    closer *c = (closer *)arg;
    const char *why = "";
    usleep(100000);
    CHECK(c->b->ops->pool_open(c->b, c->key, &bytes, &why) == NULL, "the pool is about to go");
    must(cudaMemset(c->pool, 1, POOL), "the pool is there until it is closed");
    c->closed = 1;
    c->b->ops->pool_close(c->b, c->key, c->pool);
    return NULL;
}

static void test_end(inf_backend *a, inf_backend *b) {
    const char *why = "";
    inf_pool_key key;
    uint8_t *pool = (uint8_t *)a->ops->alloc_pool(a, POOL);
    CHECK(a->ops->pool_export(a, pool, &key, &why) == INF_OK, "%s", why);
    closer c = {b, &key, b->ops->pool_open(b, &key, &bytes, &why), {0}};
    pthread_t thread;
    CHECK(c.pool == pool && pthread_create(&thread, NULL, close_later, &c) == 0, "%s", why);
    a->ops->free_pool(a, pool, POOL);
    CHECK(c.closed == 1, "the pool went before its user");
    pthread_join(thread, NULL);
}

/* Another process, with a pool of its own. */
static struct {
    pid_t pid;
    int ask[2], tell[2];
} child;

static void child_main() {
    char word;
    void *memory = NULL;
    inf_pool_key key = {};
    cudaIpcMemHandle_t handle;
    key.process = 1;
    bool ok = read(child.ask[0], &word, 1) == 1 && cudaMalloc(&memory, POOL) == cudaSuccess &&
              cudaIpcGetMemHandle(&handle, memory) == cudaSuccess;
    memcpy(key.handle, &handle, sizeof handle);
    ok = ok && write(child.tell[1], &key, sizeof key) == (ssize_t)sizeof key;
    ok = ok && read(child.ask[0], &word, 1) == 1; /* the pool is there until it was looked at */
    _exit(ok ? 0 : 1);
}

/* Before anything of CUDA: it does not outlive a fork. */
static void begin_other() {
    if (pipe(child.ask) != 0 || pipe(child.tell) != 0 || (child.pid = fork()) < 0) {
        abort();
    }
    if (child.pid == 0) {
        child_main();
    }
}

/* The emulation does not open its memory, and the caller learns why; a GPU knows how much it is. */
static void test_other(inf_backend *a) {
    const char *why = "";
    inf_pool_key key = {};
    int status = 1;
    CHECK(write(child.ask[1], "", 1) == 1, "write");
    CHECK(read(child.tell[0], &key, sizeof key) == (ssize_t)sizeof key, "read");
    uint8_t *pool = a->ops->pool_open(a, &key, &bytes, &why);
#if defined(INF_EMU)
    CHECK(pool == NULL && strstr(why, "not supported") != NULL, "%s", why);
#else
    CHECK(pool != NULL && bytes >= POOL, "%llu bytes: %s", (unsigned long long)bytes, why);
    if (pool != NULL) {
        a->ops->pool_close(a, &key, pool);
    }
#endif
    CHECK(write(child.ask[1], "", 1) == 1, "write");
    CHECK(waitpid(child.pid, &status, 0) == child.pid && status == 0, "the child");
}

#if defined(INF_EMU)
/* What CUDA has opened is as large as the driver says. The emulation opens handles of this process,
 * so a key that names another one takes that way. */
static void test_size(inf_backend *a) {
    const char *why = "";
    inf_pool_key key = {};
    cudaIpcMemHandle_t handle;
    void *memory = NULL;
    unsigned long long begin = 0;
    size_t all = 0;
    must(cudaMalloc(&memory, 3 * 4096), "cudaMalloc");
    must(cudaIpcGetMemHandle(&handle, memory), "a handle");
    memcpy(key.handle, &handle, sizeof handle);
    key.process = 1;
    uint8_t *far = a->ops->pool_open(a, &key, &bytes, &why);
    CHECK(far == memory && bytes == 3 * 4096, "%llu bytes: %s", (unsigned long long)bytes, why);
    a->ops->pool_close(a, &key, far);
    CHECK(cudaIpcCloseMemHandle(far) == cudaErrorInvalidValue, "it is closed");
    auto range = (int (*)(unsigned long long *, size_t *, unsigned long long))driver_function(
        "cuMemGetAddressRange");
    unsigned long long at = (unsigned long long)(uintptr_t)memory;
    if (range == NULL) {
        CHECK(false, "the driver's function");
        return;
    }
    CHECK(range(&begin, &all, at + 4097) == 0 && begin == at && all == 3 * 4096, "of its middle");
    CHECK(range(&begin, &all, (unsigned long long)(uintptr_t)&key) != 0, "host memory");
    CHECK(driver_function("cuNothing") == NULL, "no such function");
    must(cudaFree(memory), "cudaFree");
}

/* What the emulation holds of its handles. */
static void test_handles() {
    void *memory = NULL, *opened = NULL;
    cudaIpcMemHandle_t handle, other;
    int host = 0;
    must(cudaMalloc(&memory, 4096), "cudaMalloc");
    CHECK(cudaIpcGetMemHandle(&handle, &host) == cudaErrorInvalidValue, "host memory");
    must(cudaIpcGetMemHandle(&handle, (char *)memory + 1), "its middle will do");
    must(cudaIpcGetMemHandle(&handle, memory), "a handle");
    memset(&other, 7, sizeof other);
    CHECK(cudaIpcOpenMemHandle(&opened, other, cudaIpcMemLazyEnablePeerAccess) ==
              cudaErrorInvalidValue,
          "no handle");
    CHECK(cudaIpcOpenMemHandle(&opened, handle, 0) == cudaErrorInvalidValue, "no such flags");
    CHECK(cudaIpcCloseMemHandle(memory) == cudaErrorInvalidValue, "closed before it was opened");
    must(cudaIpcOpenMemHandle(&opened, handle, cudaIpcMemLazyEnablePeerAccess), "open");
    CHECK(opened == memory, "where it is");
    must(cudaIpcCloseMemHandle(opened), "close");
    CHECK(cudaIpcCloseMemHandle(opened) == cudaErrorInvalidValue, "closed twice");
    must(cudaFree(memory), "cudaFree");
    CHECK(cudaIpcOpenMemHandle(&opened, handle, cudaIpcMemLazyEnablePeerAccess) ==
              cudaErrorInvalidValue,
          "memory that is gone");
}
#endif

int main(int argc, char **argv) {
    begin_other();
    start(argc, argv);
    inf_backend *a = open_backend(), *b = open_backend();
    test_other(a);
#if defined(INF_EMU)
    test_size(a);
    test_handles();
#endif
    test_own(a, b);
    test_end(a, b);
    a->ops->close(a);
    b->ops->close(b);
    (void)some_early;
    return report("test_shared");
}
