/* What a peer may send is told from what it may not. It needs no RDMA device: arrivals, valid and
 * mutated, against a plain reference of the rules. test_verbs_hostile has them over the wire. */
#include "verbs_arrivals.h"

/* The consumer's part and the sender's, at random. */
static void live_on(inf_verbs_link *v) {
    uint32_t slots = v->base.config.slots;
    while (v->rx_tail < v->rx_head && draw(2) == 0)
        v->rx_next = ++v->rx_tail;
    while (v->tx_sent - v->tx_released < slots && draw(2) == 0)
        v->tx_sent++;
}

static void test_arrivals(uint32_t slots, uint64_t slot_bytes, uint64_t rounds) {
    const inf_verbs_lib lib = {.modify_qp = keep_alive};
    inf_verbs_endpoint ep = {
        .lib = &lib, .state = INF_ENDPOINT_RTS, .stride = INF_VERBS_LINE + slot_bytes};
    inf_verbs_link v = {.base.config = {.slots = slots, .slot_bytes = slot_bytes, .peer = 7},
                        .ep = &ep};
    uint64_t accepted = 0;
    ep.rx = malloc(slots * ep.stride);
    CHECK(ep.rx);
    v.rx_head = v.rx_next = v.rx_tail = draw(UINT64_C(1) << 40);
    v.tx_sent = v.tx_released = draw(UINT64_C(1) << 40);
    for (uint64_t i = 0; i < rounds; i++) {
        uint32_t bytes, imm = make_imm(&v, &bytes);
        bool may = allowed(&v, imm, bytes);
        int rc = inf_verbs_arrival(&v, imm, bytes);
        if (rc != (may ? INF_OK : INF_EPROTO)) {
            fprintf(stderr, "immediate %#x of %u bytes: %d (%s), expected %d\n", imm, bytes, rc,
                    v.base.err.message, may);
            exit(1);
        }
        accepted += may;
        if (v.last_word)
            CHECK(inf_verbs_arrival(&v, imm, bytes) == INF_EPROTO);
        check_bounds(&v);
        revive(&v);
        live_on(&v);
    }
    printf("  %u slots of %llu bytes: %llu of %llu arrivals were allowed\n", slots,
           (unsigned long long)slot_bytes, (unsigned long long)accepted,
           (unsigned long long)rounds);
    CHECK(accepted > rounds / 10 && accepted < rounds);
    free(ep.rx);
}

int main(void) {
    test_arrivals(2, 64, 200000);
    test_arrivals(64, 4096, 200000);
    test_arrivals(5, (9 << 20) + 128, 200000);
    printf("ok\n");
    return 0;
}
