/* A fake around the CPU's backend that shares pools, opens them by their address, and counts: what
 * tests of copies from pool to pool use. */
#ifndef INF_TESTS_DIRECT_FAKE_H
#define INF_TESTS_DIRECT_FAKE_H

#include "wire_raw.h"

#include "dist/internal.h"
#include "held.h"

static struct {
    atomic_uint exports, opens, open, copies;
    atomic_bool refuse_export, refuse_open;
    atomic_uint_least64_t bytes; /* that are there of an opened pool */
    atomic_bool break_copy;      /* the lane of a copy has failed from then on */
    _Atomic(inf_lane *) broken;
    int (*sync)(inf_lane *, inf_err *);
    void (*lane_close)(inf_lane *);
    held_call exporting;
    atomic_bool hold;
} fake = {.bytes = UINT64_MAX};

static int fake_export(inf_backend *b, void *pool, inf_pool_key *out, const char **why) {
    (void)b;
    *why = "no export today";
    if (atomic_exchange(&fake.hold, false)) {
        held_here(&fake.exporting);
    }
    if (atomic_load(&fake.refuse_export)) {
        return INF_EUNSUPPORTED;
    }
    *out = (inf_pool_key){.process = 77, .address = (uint64_t)(uintptr_t)pool};
    atomic_fetch_add(&fake.exports, 1);
    return INF_OK;
}

static uint8_t *fake_open(inf_backend *b, const inf_pool_key *key, uint64_t *bytes,
                          const char **why) {
    (void)b;
    *bytes = atomic_load(&fake.bytes);
    *why = "no opening today";
    if (atomic_load(&fake.refuse_open) || key->process != 77) {
        return NULL;
    }
    atomic_fetch_add(&fake.opens, 1);
    atomic_fetch_add(&fake.open, 1);
    return (uint8_t *)(uintptr_t)key->address;
}

static void fake_close(inf_backend *b, const inf_pool_key *key, uint8_t *pool) {
    (void)b;
    CHECK((uint64_t)(uintptr_t)pool == key->address);
    atomic_fetch_sub(&fake.open, 1);
}

static void fake_copy(inf_lane *lane, void *to, const void *from, uint64_t bytes) {
    if (atomic_load(&fake.break_copy)) {
        atomic_store(&fake.broken, lane);
        return;
    }
    memcpy(to, from, bytes);
    atomic_fetch_add(&fake.copies, 1);
}

static int fake_sync(inf_lane *lane, inf_err *err) {
    return lane == atomic_load(&fake.broken) ? INF_EIO : fake.sync(lane, err);
}

static void fake_lane_close(inf_lane *lane) {
    inf_lane *mine = lane;
    atomic_compare_exchange_strong(&fake.broken, &mine, NULL);
    fake.lane_close(lane);
}

static void use_fake(void) {
    inf_backend *b = w_backend();
    inf_backend_ops *ops = (inf_backend_ops *)(uintptr_t)b->ops;
    fake.sync = ops->sync;
    fake.lane_close = ops->lane_close;
    ops->sync = fake_sync;
    ops->lane_close = fake_lane_close;
    ops->pool_export = fake_export;
    ops->pool_open = fake_open;
    ops->pool_close = fake_close;
    ops->copy = fake_copy;
    b->ops->close(b);
}

#endif
