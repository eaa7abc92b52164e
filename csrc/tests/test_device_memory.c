/* What registering a GPU's pool is given: the backend's answers, as verbs.h wants them. A fake
 * around the CPU's backend counts; without its functions there is no way for a NIC. */
#include "dist_world.h"

#include "dist/internal.h"

#include <errno.h>

static struct {
    int exports, flushes, pins, flush_status;
    void *exported;
} fake;

static int fake_export(inf_backend *b, void *device, uint64_t bytes, int *fd, uint64_t *offset) {
    (void)b, (void)bytes;
    fake.exports++;
    fake.exported = device;
    *fd = -1;
    *offset = 4096;
    return EOPNOTSUPP;
}

static int fake_peermem(inf_backend *b) {
    (void)b;
    return ENOENT;
}

static int fake_flush(inf_backend *b) {
    (void)b;
    fake.flushes++;
    return fake.flush_status;
}

static int fake_pin(inf_backend *b, void *host, uint64_t bytes) {
    (void)b, (void)host, (void)bytes;
    return ++fake.pins > 1 ? INF_ENOMEM : INF_OK;
}

static void fake_unpin(inf_backend *b, void *host) {
    (void)b, (void)host;
    fake.pins--;
}

int main(void) {
    inf_backend *b = w_backend();
    inf_backend_ops *ops = (inf_backend_ops *)(uintptr_t)b->ops;
    b->ops->close(b);
    inst w = w_open(32);
    CHECK(inf_device_memory(w.d) == NULL); /* host memory: nothing of this */
    w_close(&w);

    ops->nic_export = fake_export;
    ops->nic_peermem = fake_peermem;
    ops->nic_flush = fake_flush;
    fake.flush_status = EOPNOTSUPP;
    w = w_open(32);
    const inf_memory_ops *m = inf_device_memory(w.d);
    CHECK(m != NULL && m->flush == NULL && m->pin == NULL && fake.flushes == 1);
    w_close(&w);

    ops->host_pin = fake_pin;
    ops->host_unpin = fake_unpin;
    fake.flush_status = 0;
    w = w_open(32);
    m = inf_device_memory(w.d);
    CHECK(m != NULL && m == inf_device_memory(w.d) && m->flush != NULL && fake.flushes == 2);
    CHECK(m->flush(m->arg, 0, 1) == 0 && fake.flushes == 3);
    fake.flush_status = EIO;
    CHECK(m->flush(m->arg, 0, 1) == EIO && m->has_peermem(m->arg) == ENOENT);
    int fd = 0;
    uint64_t offset = 0, at = (uint64_t)(uintptr_t)w_block(&w, 3);
    CHECK(m->export_dmabuf(m->arg, at, 64, &fd, &offset) == EOPNOTSUPP);
    CHECK(fake.exported == w_block(&w, 3) && offset == 4096);
    uint8_t bytes[64], back[64];
    memset(bytes, 0x3c, sizeof bytes);
    CHECK(m->copy_in(m->arg, at, bytes, sizeof bytes) == 0);
    CHECK(m->copy_out(m->arg, back, at, sizeof back) == 0 && memcmp(bytes, back, 64) == 0);
    CHECK(w_block(&w, 3)[63] == 0x3c && w_block(&w, 3)[64] == 0xa5);
    CHECK(m->pin(m->arg, bytes, 64) == 0 && m->pin(m->arg, back, 64) == ENOMEM);
    m->unpin(m->arg, bytes);
    w_close(&w);
    return 0;
}
