/* Puts, on an RDMA device: bytes from one pool to another. What is granted gets written, nothing
 * else does, and no longer than it is granted. test_verbs_ways has the memory that they use. */
#include "verbs_pair.h"

#include "fake_gpu_memory.h"
#include "transport/verbs/ring.h"

static rdma_ports ports;
enum { BLOCK = 8192, BLOCKS = 512 };

/* A pool at each end, and a link between them. */
typedef struct {
    uint8_t *pool[2];
    inf_region *region[2];
    inf_link *link[2];
} world;

static void open_world(world *w) {
    inf_err err;
    pair_links(&ports, (pair_shape){4, 65536, 0}, w->link, NULL);
    for (int i = 0; i < 2; i++) {
        w->pool[i] = aligned_alloc(4096, BLOCK * BLOCKS);
        CHECK(w->pool[i]);
        memset(w->pool[i], i, BLOCK * BLOCKS);
        inf_memory m = {.address = (uint64_t)(uintptr_t)w->pool[i],
                        .bytes = BLOCK * BLOCKS,
                        .kind = INF_MEMORY_HOST};
        CHECK_OK(inf_region_open(ports.device[i], &m, &w->region[i], &err));
        CHECK(inf_region_way(w->region[i], NULL) == INF_WAY_HOST);
        CHECK(inf_region_flush(w->region[i], 0, BLOCK, &err) == INF_OK);
        CHECK(inf_link_use_region(w->link[i], w->region[i]) == INF_OK);
        CHECK(inf_link_use_region(w->link[i], w->region[i]) == INF_EINVAL);
    }
    CHECK(inf_region_close(w->region[0]) == INF_EFULL);
}

static void close_world(world *w) {
    for (int i = 0; i < 2; i++)
        inf_link_close(w->link[i]);
    for (int i = 0; i < 2; i++) {
        CHECK(inf_region_close(w->region[i]) == INF_OK);
        free(w->pool[i]);
    }
}

static inf_grant grant_at(inf_link *link, uint64_t offset, uint64_t bytes) {
    inf_grant g;
    int rc;
    while ((rc = inf_link_grant(link, offset, bytes, &g)) == INF_AGAIN)
        wait_one(link);
    must(link, rc, __LINE__);
    CHECK(g.bytes == bytes);
    return g;
}

static void revoke_grant(inf_link *link, uint32_t id) {
    int rc;
    while ((rc = inf_link_revoke(link, id)) == INF_AGAIN)
        wait_one(link);
    must(link, rc, __LINE__);
    CHECK(inf_link_revoke(link, id) == INF_EINVAL);
}

static void put(inf_link *link, const inf_put *puts, uint32_t n) {
    int rc;
    while ((rc = inf_link_put(link, puts, n)) == INF_AGAIN)
        wait_one(link);
    must(link, rc, __LINE__);
}

/* Tells the other end, and waits until it knows. */
static void tell(world *w, int from, uint64_t number) {
    SEND(w->link[from], number, 16);
    TAKE(w->link[1 - from], number, 16);
}

/* Moves of scattered blocks to scattered places, many times over. */
static void test_moves(uint64_t rounds) {
    world w;
    open_world(&w);
    double begun = now_s();
    uint64_t blocks = 0;
    for (uint64_t round = 0; round < rounds; round++) {
        uint32_t n = 1 + (uint32_t)(mix(round) % 16), first = (uint32_t)(mix(round + 99) % 128);
        inf_grant grants[16];
        inf_put puts[16];
        for (uint32_t i = 0; i < n; i++) {
            /* Runs of three follow each other at the receiver; sources are anywhere. */
            uint32_t run = i / 3, to = first + run * 7 + i % 3;
            if (i % 3 == 0) {
                uint32_t left = n - i < 3 ? n - i : 3;
                grants[run] = grant_at(w.link[1], (uint64_t)to * BLOCK, (uint64_t)left * BLOCK);
            }
            uint32_t source = (uint32_t)((mix(round * 31 + 7) + i * 37) % BLOCKS);
            fill_pattern(w.pool[0] + (uint64_t)source * BLOCK, round * 100 + i, BLOCK);
            puts[i] = (inf_put){.offset = (uint64_t)source * BLOCK,
                                .remote = grants[run].address + (uint64_t)(i % 3) * BLOCK,
                                .key = grants[run].key,
                                .bytes = BLOCK};
        }
        put(w.link[0], puts, n);
        tell(&w, 0, round);
        for (uint32_t i = 0; i < n; i++) {
            if (i % 3 == 0)
                revoke_grant(w.link[1], grants[i / 3].id);
            uint32_t to = first + i / 3 * 7 + i % 3;
            CHECK(check_pattern(w.pool[1] + (uint64_t)to * BLOCK, round * 100 + i, BLOCK));
        }
        while (inf_link_put_pending(w.link[0]) > 0)
            wait_one(w.link[0]);
        blocks += n;
    }
    printf("  %llu blocks of %d bytes in %.1f s\n", (unsigned long long)blocks, BLOCK,
           now_s() - begun);
    close_world(&w);
}

/* The bytes in flight stay under their limit; one larger call goes alone. */
static void test_limit(void) {
    world w;
    open_world(&w);
    bool slow = getenv("GUEST_LIB") != NULL; /* else a small network may be done at once */
    if (slow)
        CHECK(system(". \"$GUEST_LIB\"; guest_netem v1 delay 2ms") == 0);
    inf_grant g = grant_at(w.link[1], 0, BLOCK * BLOCKS);
    CHECK(inf_link_put_limit(w.link[0], 3 * BLOCK) == INF_OK);
    int waits = 0;
    for (uint32_t i = 0; i < 200; i++) {
        inf_put p = {(uint64_t)i * BLOCK, g.address + (uint64_t)i * BLOCK, g.key, BLOCK};
        int rc;
        while ((rc = inf_link_put(w.link[0], &p, 1)) == INF_AGAIN) {
            waits++;
            wait_one(w.link[0]);
        }
        CHECK(rc == INF_OK && inf_link_put_pending(w.link[0]) <= 3 * BLOCK);
    }
    inf_put large = {0, g.address, g.key, 40 * BLOCK};
    put(w.link[0], &large, 1);
    tell(&w, 0, 1);
    while (inf_link_put_pending(w.link[0]) > 0)
        wait_one(w.link[0]);
    printf("  200 puts under a limit of three waited %d times\n", waits);
    CHECK(!slow || waits > 20);
    if (slow)
        CHECK(system(". \"$GUEST_LIB\"; guest_loss 0 v1") == 0);
    close_world(&w);
}

static void test_refusals(void) {
    world w;
    inf_grant g;
    open_world(&w);
    inf_link *l = w.link[1];
    CHECK(inf_link_grant(l, 0, BLOCK * BLOCKS + 1, &g) == INF_EINVAL);
    CHECK(inf_link_grant(l, BLOCK * BLOCKS, 1, &g) == INF_EINVAL);
    CHECK(inf_link_grant(l, UINT64_MAX, 2, &g) == INF_EINVAL);
    CHECK(inf_link_grant(l, 0, 0, &g) == INF_EINVAL);
    CHECK(inf_link_revoke(l, 0) == INF_EINVAL && inf_link_revoke(l, UINT32_MAX) == INF_EINVAL);
    inf_put p = {BLOCK * BLOCKS - 1, 0, 0, 2};
    CHECK(inf_link_put(l, &p, 1) == INF_EINVAL && inf_link_put(l, &p, 0) == INF_EINVAL);
    CHECK(inf_link_put(l, &p, INF_PUT_MAX + 1) == INF_EINVAL);
    /* Many grants at once, and the table's end. */
    inf_grant all[INF_VERBS_GRANTS];
    for (uint32_t i = 0; i < INF_VERBS_GRANTS; i++)
        all[i] = grant_at(l, (uint64_t)(i % BLOCKS) * BLOCK, BLOCK);
    CHECK(inf_link_grant(l, 0, BLOCK, &g) == INF_EFULL);
    for (uint32_t i = 0; i < INF_VERBS_GRANTS; i++)
        revoke_grant(l, all[i].id);
    g = grant_at(l, 0, BLOCK);
    inf_put good = {0, g.address, g.key, BLOCK};
    put(w.link[0], &good, 1);
    tell(&w, 0, 1);
    CHECK(w.pool[1][0] == 0 && w.pool[1][BLOCK - 1] == 0 && w.pool[1][BLOCK] == 1);
    close_world(&w);
}

/* A put beside the grant, into a revoked one, or by a link that it was not given to: the put's link
 * dies, the memory stays. Soft-RoCE checks a window's key and queue pair, but not its bounds (only
 * those of the region below it), so there the first two cannot be tested. */
static void test_beyond_the_grant(void) {
    bool bounds = strncmp(ports.name[1], "rxe", 3) != 0;
    for (int kind = bounds ? 0 : 2; kind < 4; kind++) {
        world w, other;
        inf_err err;
        open_world(&w);
        open_world(&other);
        inf_grant g = grant_at(w.link[1], 4 * BLOCK, BLOCK);
        tell(&w, 1, 5);
        inf_put p = {0, g.address, g.key, BLOCK};
        inf_link *by = w.link[0];
        if (kind == 0)
            p.remote -= 1;
        else if (kind == 1)
            p.remote += 1;
        else if (kind == 2) {
            revoke_grant(w.link[1], g.id);
            grant_at(w.link[1], 4 * BLOCK, BLOCK); /* the same window, with the next key */
        } else {
            by = other.link[0];
        }
        CHECK(inf_link_put(by, &p, 1) == INF_OK);
        expect_death(by, INF_EPEER, &err);
        if (kind == 2)
            printf("  %s\n", err.message);
        for (uint64_t i = 0; i < BLOCK * BLOCKS; i++)
            CHECK(w.pool[1][i] == 1);
        close_world(&other);
        close_world(&w);
    }
}

/* Links that cannot, and a GPU without direct access over a real device. */
static void test_unsupported(void) {
    inf_link *l[2];
    inf_err err;
    inf_region *r;
    inf_grant g;
    inf_put p = {0, 0, 0, 1};
    uint8_t *pool = aligned_alloc(4096, 4096);
    inf_memory m = {.address = (uint64_t)(uintptr_t)pool, .bytes = 4096, .kind = INF_MEMORY_HOST};
    CHECK_OK(inf_region_open(ports.device[0], &m, &r, &err));
    pair_links(&ports, (pair_shape){2, 64, INF_VERBS_NO_WINDOWS}, l, NULL);
    CHECK(inf_link_use_region(l[0], r) == INF_EUNSUPPORTED);
    CHECK(inf_link_grant(l[0], 0, 1, &g) == INF_EINVAL && inf_link_put(l[0], &p, 1) == INF_EINVAL);
    CHECK(inf_link_status(l[0], NULL) == INF_OK);
    inf_link_close(l[0]);
    inf_link_close(l[1]);
    CHECK(inf_region_close(r) == INF_OK);
    inf_memory_ops ops = {
        .arg = &gpu, .flush = fake_flush, .copy_in = fake_copy_in, .copy_out = fake_copy_out};
    m.kind = INF_MEMORY_DEVICE;
    m.ops = &ops;
    CHECK_OK(inf_region_open(ports.device[0], &m, &r, &err));
    CHECK(inf_region_way(r, NULL) == INF_WAY_BOUNCE);
    pair_links(&ports, (pair_shape){2, 64, 0}, l, NULL);
    CHECK(inf_link_use_region(l[0], r) == INF_EUNSUPPORTED);
    CHECK(inf_link_grant(l[0], 0, 1, &g) == INF_EUNSUPPORTED);
    SEND(l[0], 1, 64);
    TAKE(l[1], 1, 64);
    inf_link_close(l[0]);
    inf_link_close(l[1]);
    CHECK(inf_region_close(r) == INF_OK);
    free(pool);
}

int main(void) {
    rdma_find_or_skip(&ports);
    rdma_open(&ports);
    printf("moves\n");
    test_moves(1000);
    printf("limit\n");
    test_limit();
    printf("refusals\n");
    test_refusals();
    test_beyond_the_grant();
    test_unsupported();
    rdma_close(&ports);
    printf("ok\n");
    return 0;
}
