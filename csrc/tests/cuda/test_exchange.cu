/* What a step exchanges with messages on the GPU, in memory that is pinned and in memory that is
 * not, and how memory is pinned. By one backend, and by one that is made of two, of which each has
 * its heads of every row. */
#include "answer_rig.h"

static float *part_of(const rig *r, void *memory, int32_t rank) {
    return (float *)(r->ranks == 1 ? memory : tp_part(memory, rank));
}

/* What is pinned, and what is not: addresses at and over the ends. */
static void test_pins(rig *r) {
    cuda_backend *b = (cuda_backend *)r->gpu;
    const inf_backend_ops *ops = r->gpu->ops;
    uint8_t *at = r->slots;
    CHECK(pinned_find(b, at, 1) == NULL, "nothing is pinned");
    CHECK(ops->host_pin(r->gpu, at + SLOT, SLOT) == INF_OK, "pin");
    CHECK(ops->host_pin(r->gpu, at + SLOT, SLOT) != INF_OK, "pinned twice");
    CHECK(ops->host_pin(r->gpu, NULL, SLOT) != INF_OK, "nothing");
    CHECK(ops->host_pin(r->gpu, at + 3 * SLOT, SLOT) == INF_OK, "pin");
    CHECK(pinned_find(b, at + SLOT, SLOT) != NULL, "all of it");
    CHECK(pinned_find(b, at + SLOT, SLOT + 1) == NULL, "beyond its end");
    CHECK(pinned_find(b, at + SLOT - 1, 2) == NULL, "before its beginning");
    CHECK(pinned_find(b, at + 2 * SLOT - 1, 1) != NULL, "its last byte");
    CHECK(pinned_find(b, at + 2 * SLOT, 1) == NULL, "after its end");
    CHECK(pinned_find(b, at + 2 * SLOT - 1, UINT64_MAX) == NULL, "a length that wraps");
    CHECK(pinned_find(b, at + 3 * SLOT + 5, 9) != NULL, "the second one");
    ops->host_unpin(r->gpu, at); /* not pinned: nothing happens */
    ops->host_unpin(r->gpu, at + SLOT);
    CHECK(pinned_find(b, at + SLOT, 1) == NULL, "unpinned");
    CHECK(cudaHostUnregister(at + SLOT) != cudaSuccess, "unpinned in the driver too");
    (void)cudaGetLastError();
    CHECK(pinned_find(b, at + 3 * SLOT, 1) != NULL, "the other one is left");
    ops->host_unpin(r->gpu, at + 3 * SLOT);
}

/* Ranks share a registration: all of them have the pages, or none that had not before. */
static void test_pins_of_ranks(rig *r) {
    tp_backend *b = (tp_backend *)r->gpu;
    const inf_backend_ops *ops = r->gpu->ops;
    uint8_t *at = r->slots;
    CHECK(ops->host_pin(r->gpu, at, SLOT) == INF_OK, "pin");
    for (int32_t i = 0; i < r->ranks; i++) {
        CHECK(pinned_find((cuda_backend *)b->rank[i], at, SLOT) != NULL, "rank %d", i);
    }
    CHECK(ops->host_pin(r->gpu, at, SLOT) != INF_OK, "pinned twice");
    CHECK(pinned_find((cuda_backend *)b->rank[0], at, SLOT) != NULL, "it stays pinned");
    ops->host_unpin(r->gpu, at);
    CHECK(cudaHostUnregister(at) != cudaSuccess, "unpinned in the driver too");
    (void)cudaGetLastError();
    CHECK(b->ops->host_pin(b->rank[1], at, SLOT) == INF_OK, "pin");
    CHECK(ops->host_pin(r->gpu, at, SLOT) != INF_OK, "not by all ranks");
    CHECK(b->ops->host_pin(b->rank[0], at, 2 * SLOT) != INF_OK, "more than is registered");
    CHECK(pinned_find((cuda_backend *)b->rank[0], at, 1) == NULL, "the first rank let go");
    CHECK(pinned_find((cuda_backend *)b->rank[1], at, SLOT) != NULL, "the second one has its own");
    b->ops->host_unpin(b->rank[1], at);
    CHECK(cudaHostUnregister(at) != cudaSuccess, "unpinned in the driver too");
    (void)cudaGetLastError();
}

/* Rows of all heads to and from the ranks' parts of device memory. */
static void put_rows(const rig *r, void *device, const std::vector<float> &all) {
    size_t n = ROW / (size_t)r->ranks;
    for (int32_t k = 0; k < r->ranks; k++) {
        must(cudaMemcpy2D(part_of(r, device, k), n * 4, &all[(size_t)k * n], ROW * 4, n * 4, ROWS,
                          cudaMemcpyHostToDevice),
             "rows");
    }
    must(cudaDeviceSynchronize(), "rows"); /* lanes do not wait for the stream of these */
}

static std::vector<float> get_rows(const rig *r, void *device) {
    std::vector<float> all((size_t)ROWS * ROW);
    size_t n = ROW / (size_t)r->ranks;
    for (int32_t k = 0; k < r->ranks; k++) {
        must(cudaMemcpy2D(&all[(size_t)k * n], ROW * 4, part_of(r, device, k), n * 4, n * 4, ROWS,
                          cudaMemcpyDeviceToHost),
             "rows");
    }
    return all;
}

/* Queries out of a step's lane and partials into it, in place: 1 means that merge reads later. */
static void test_exchange(rig *r) {
    inf_lane *lane = open_lane(r, r->gpu, INF_LANE_STEP);
    const inf_backend_ops *ops = r->gpu->ops;
    std::vector<float> q((size_t)ROWS * ROW);
    for (float &x : q) {
        x = number();
    }
    float *device = (float *)ops->alloc(r->gpu, q.size() * sizeof(float));
    put_rows(r, device, q);
    float *host = (float *)(r->slots + 64), *far = (float *)(r->slots + 3 * SLOT);
    CHECK(ops->host_pin(r->gpu, r->slots, SLOT) == INF_OK, "pin");
    memset(r->slots, 0, 4 * SLOT);
    for (uint32_t i = 0; i < ROWS; i++) { /* in turn to pinned and to other memory */
        ops->queries(lane, device, i, 1, (i % 2 ? far : host) + (ROWS - 1 - i) * ROW, HEADS);
    }
    CHECK(ops->sync(lane, &err) == INF_OK, "%s", err.message);
    for (uint32_t i = 0; i < ROWS; i++) {
        float *at = (i % 2 ? far : host) + (ROWS - 1 - i) * ROW;
        CHECK(memcmp(at, &q[i * ROW], ROW * sizeof(float)) == 0, "row %u", i);
    }
    for (int32_t k = 0; k < r->ranks; k++) {
        const inf_lane *l = lane_of(r, lane, k);
        CHECK(l->direct_rows == ROWS / 2 && l->staged_rows == ROWS / 2, "half of them in place");
    }

    /* A partial of lse -inf in the lane takes what is merged as it is. */
    std::vector<float> none((size_t)ROWS * HEADS, -INFINITY);
    for (int32_t k = 0; k < r->ranks; k++) {
        inf_lane *l = lane_of(r, lane, k);
        must(cudaMemcpy(l->lse, none.data(), none.size() * sizeof(float) / (size_t)r->ranks,
                        cudaMemcpyHostToDevice),
             "lse");
        l->partial = part_of(r, device, k);
        l->rows = ROWS;
    }
    must(cudaDeviceSynchronize(), "lse");
    for (int i = 0; i < ROWS * ROW; i++) {
        host[i] = far[i] = number();
    }
    float *lse = host + ROWS * ROW, *far_lse = far + ROWS * ROW;
    memset(lse, 0, ROWS * HEADS * sizeof(float));
    memset(far_lse, 0, ROWS * HEADS * sizeof(float));
    for (uint32_t i = 0; i < IN_PLACE; i++) { /* more runs than a launch takes */
        CHECK(ops->merge(lane, i, 1, host + i * ROW, lse + i * HEADS, HEADS) == 1, "read in place");
    }
    CHECK(ops->merge(lane, IN_PLACE, ROWS - IN_PLACE, far + IN_PLACE * ROW,
                     far_lse + IN_PLACE * HEADS, HEADS) == 0,
          "staged");
    std::vector<float> host_was(host, host + ROWS * ROW);
    std::vector<float> far_was(far, far + ROWS * ROW);
    memset(far, 0xff, ROWS * ROW * sizeof(float)); /* it is the caller's again */
    /* A sync in the middle of a layer's merges loses none. */
    CHECK(ops->sync(lane, &err) == INF_OK, "%s", err.message);
    memset(host, 0xff, ROWS * ROW * sizeof(float));
    CHECK(ops->sync(lane, &err) == INF_OK, "%s", err.message);
    std::vector<float> got = get_rows(r, device);
    size_t wrong = 0;
    for (int i = 0; i < ROWS * ROW; i++) {
        const std::vector<float> &want = i < IN_PLACE * ROW ? host_was : far_was;
        wrong += memcmp(&got[(size_t)i], &want[(size_t)i], sizeof want[0]) != 0;
    }
    CHECK(wrong == 0, "%zu numbers are wrong", wrong);
    ops->host_unpin(r->gpu, r->slots);
    ops->lane_close(lane);
    ops->free(r->gpu, device);
}

int main(int argc, char **argv) {
    start(argc, argv);
    for (const auto &c : RIGS) {
        rig r = open_rig(c[0], c[1], c[2]);
        r.ranks == 1 ? test_pins(&r) : test_pins_of_ranks(&r);
        if (r.config.dtype == INF_DTYPE_F32) {
            test_exchange(&r);
        }
        close_rig(&r);
    }
    return report("test_exchange");
}
