/* What the backend says of GPUDirect, by what the (emulated) GPU and its driver can. */
#include "guarded.h"

#include <errno.h>
#include <unistd.h>

#include "kernels/cuda/lane.h"

extern "C" int inf_cuda_backend_open_12(int32_t ordinal, const inf_device_config *config,
                                        uint64_t config_bytes, uint64_t ops_bytes,
                                        inf_backend **out, inf_err *err);

static bool module_there() {
    return access("/sys/module/nvidia_peermem", F_OK) == 0 ||
           access("/sys/module/nv_peer_mem", F_OK) == 0;
}

#if defined(INF_EMU)
/* can: as in INF_EMU_GPUDIRECT. */
static void test_kind(inf_backend *b, uint8_t *pool, uint64_t bytes, int can) {
    char text[8];
    int fd = -1;
    uint64_t offset = 9;
    snprintf(text, sizeof text, "%d", can);
    setenv("INF_EMU_GPUDIRECT", text, 1);
    int status = b->ops->nic_export(b, pool, bytes, &fd, &offset);
    CHECK(status == ((can & 1) != 0 ? 0 : EOPNOTSUPP), "export with %d: %d", can, status);
    CHECK((can & 1) == 0 || (fd >= 0 && offset == 0), "what is exported");
    if (fd >= 0) {
        close(fd);
    }
    int want = (can & 6) != 0 ? 0 : EOPNOTSUPP;
    CHECK(b->ops->nic_flush(b) == want, "flush with %d", can);
    want = (can & 1) == 0 ? EOPNOTSUPP : module_there() ? 0 : ENOENT;
    CHECK(b->ops->nic_peermem(b) == want, "peer memory with %d", can);
}
#endif

int main(int argc, char **argv) {
    start(argc, argv);
    inf_device_config c = {};
    inf_backend *b = NULL;
    inf_err err;
    int fd = -1;
    uint64_t offset = 0, bytes = (1 << 20) + 4096 + 12; /* no whole pages, but the pool has them */
    c.dtype = INF_DTYPE_BF16;
    CHECK(inf_cuda_backend_open_12(0, &c, sizeof c, sizeof(inf_backend_ops), &b, &err) == INF_OK,
          "%s", err.message);
    uint8_t *pool = (uint8_t *)b->ops->alloc_pool(b, bytes);
#if defined(INF_EMU)
    for (int can = 0; can < 8; can++) {
        test_kind(b, pool, bytes, can);
    }
    int host = 0;
    CHECK(b->ops->nic_export(b, &host, 4, &fd, &offset) != 0, "host memory");
    CHECK(b->ops->nic_export(b, pool, 64 << 20, &fd, &offset) == EOPNOTSUPP, "beyond its end");
#endif
    CHECK(b->ops->nic_export(b, pool + 64, 4096, &fd, &offset) != 0, "within a page");
    (void)module_there;
    (void)some_early;
    b->ops->free_pool(b, pool, bytes);
    b->ops->close(b);
    return report("test_nic");
}
