/* Which way a region of memory is registered, with fakes for the GPU and for the RDMA library, so
 * that it runs anywhere. */
#include "verbs_pair.h"

#include <fcntl.h>

#include "fake_gpu_memory.h"
#include "transport/verbs/ring.h"

static int fake_export(void *arg, uint64_t address, uint64_t bytes, int *fd, uint64_t *offset) {
    fake_gpu *g = arg;
    CHECK(address == 0x7000 && bytes == 4096);
    if (g->export_rc != 0)
        return g->export_rc;
    *fd = g->fd = open("/dev/null", O_RDONLY);
    *offset = 0x3000;
    return 0;
}

static int fake_peermem(void *arg) { return ((fake_gpu *)arg)->peermem_rc; }

static struct ibv_mr fake_mr;

static struct ibv_mr *fake_reg(struct ibv_pd *pd, void *address, size_t bytes, int access) {
    (void)pd, (void)address;
    CHECK(bytes == 4096 && !(access & (IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ)));
    errno = gpu.reg_rc;
    gpu.registered += gpu.reg_rc == 0;
    return gpu.reg_rc == 0 ? &fake_mr : NULL;
}

static struct ibv_mr *fake_reg_dmabuf(struct ibv_pd *pd, uint64_t offset, size_t bytes,
                                      uint64_t iova, int fd, int access) {
    (void)pd;
    CHECK(offset == 0x3000 && bytes == 4096 && fd == gpu.fd && fcntl(fd, F_GETFD) >= 0);
    CHECK(!(access & (IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ)));
    gpu.iova = iova;
    errno = gpu.dmabuf_rc;
    gpu.registered += gpu.dmabuf_rc == 0;
    return gpu.dmabuf_rc == 0 ? &fake_mr : NULL;
}

static int fake_dereg(struct ibv_mr *mr) {
    CHECK(mr == &fake_mr);
    gpu.registered--;
    return 0;
}

typedef struct {
    fake_gpu gpu;
    bool old_library, no_export, no_flush, no_copy;
    uint32_t without;
    uint32_t way; /* expected; 0: none */
    const char *why;
} ways_case;

static void test_way(const ways_case *c) {
    inf_verbs_lib lib = {.reg_mr = fake_reg,
                         .reg_dmabuf_mr = c->old_library ? NULL : fake_reg_dmabuf,
                         .dereg_mr = fake_dereg};
    inf_verbs_context context = {.name = "fake", .lib = &lib};
    context.attr.device_cap_flags = (unsigned)IBV_DEVICE_MEM_WINDOW_TYPE_2B;
    inf_verbs_device device = {.context = &context, .users = 1};
    inf_memory_ops ops = {.arg = &gpu,
                          .export_dmabuf = c->no_export ? NULL : fake_export,
                          .has_peermem = fake_peermem,
                          .flush = c->no_flush ? NULL : fake_flush,
                          .copy_out = c->no_copy ? NULL : fake_copy_out,
                          .copy_in = c->no_copy ? NULL : fake_copy_in};
    inf_memory memory = {0x7000, 4096, INF_MEMORY_DEVICE, c->without, &ops};
    inf_region *r;
    inf_err err = {0};
    const char *why;
    gpu = c->gpu;
    int rc = inf_region_open(&device, &memory, &r, &err);
    CHECK(gpu.fd == 0 || fcntl(gpu.fd, F_GETFD) < 0); /* closed in every case */
    if (c->way == 0) {
        CHECK(rc == INF_EUNSUPPORTED && strstr(err.message, c->why) && device.users == 1);
        return;
    }
    CHECK(rc == INF_OK && device.users == 2 && inf_region_way(r, &why) == c->way);
    CHECK(strcmp(why, c->why) == 0);
    CHECK(gpu.registered == (c->way != INF_WAY_BOUNCE));
    CHECK(c->way != INF_WAY_DMABUF || gpu.iova == 0x3000);
    char buf[128];
    CHECK(inf_region_flush(r, 64, 128, &err) == INF_OK);
    CHECK(gpu.flushes == (c->way != INF_WAY_BOUNCE));
    CHECK(inf_region_flush(r, 4096, 1, &err) == INF_EINVAL);
    CHECK(inf_region_flush(r, UINT64_MAX, 2, &err) == INF_EINVAL);
    if (!c->no_copy) {
        CHECK(inf_region_load(r, buf, 0, sizeof buf, &err) == INF_OK && gpu.loads == 1);
        CHECK(inf_region_store(r, 0, buf, sizeof buf, &err) == INF_EIO && err.code == INF_EIO);
    }
    CHECK(inf_region_close(r) == INF_OK && gpu.registered == 0 && device.users == 1);
}

static void test_ways(void) {
    static const ways_case cases[] = {
        {.way = INF_WAY_DMABUF, .why = ""},
        {.gpu.export_rc = EOPNOTSUPP,
         .way = INF_WAY_PEERMEM,
         .why = "dma-buf: Operation not supported"},
        {.gpu.dmabuf_rc = EOPNOTSUPP,
         .way = INF_WAY_PEERMEM,
         .why = "dma-buf: Operation not supported"},
        {.old_library = true,
         .way = INF_WAY_PEERMEM,
         .why = "dma-buf: the RDMA library is too old"},
        {.no_export = true, .way = INF_WAY_PEERMEM, .why = "dma-buf: the GPU exports none"},
        {.without = 1 << INF_WAY_DMABUF, .way = INF_WAY_PEERMEM, .why = ""},
        {.gpu = {.dmabuf_rc = EIO, .peermem_rc = ENOENT},
         .way = INF_WAY_BOUNCE,
         .why = "dma-buf: Input/output error; peer memory: No such file or directory"},
        {.gpu = {.dmabuf_rc = EIO, .reg_rc = EFAULT},
         .way = INF_WAY_BOUNCE,
         .why = "dma-buf: Input/output error; peer memory: Bad address"},
        {.no_flush = true,
         .way = INF_WAY_BOUNCE,
         .why = "direct access: the device's memory cannot be flushed"},
        {.without = 1 << INF_WAY_DMABUF | 1 << INF_WAY_PEERMEM, .way = INF_WAY_BOUNCE, .why = ""},
        {.gpu = {.dmabuf_rc = EIO, .peermem_rc = ENOENT}, .no_copy = true, .why = "peer memory"},
        {.no_copy = true, .way = INF_WAY_DMABUF, .why = ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        test_way(&cases[i]);
}

int main(void) {
    test_ways();
    printf("ok\n");
    return 0;
}
