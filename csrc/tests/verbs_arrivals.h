/* What a peer of a verbs link may send and what it may not: arrivals, valid and mutated, and a
 * plain reference of the rules. */
#ifndef INF_TESTS_VERBS_ARRIVALS_H
#define INF_TESTS_VERBS_ARRIVALS_H

#include "verbs_pair.h"

#include <arpa/inet.h>

#include "transport/verbs/ring.h"

static uint64_t seed = 1;

static uint64_t draw(uint64_t below) { return mix(seed++) % below; }

static int keep_alive(struct ibv_qp *qp, struct ibv_qp_attr *attr, int mask) {
    (void)qp, (void)attr, (void)mask;
    return 0;
}

static void revive(inf_verbs_link *v) {
    v->base.err = v->ep->err = (inf_err){0};
    v->ep->state = INF_ENDPOINT_RTS;
    v->last_word = v->gone = false;
}

/* What the victim may accept, written down a second time and in another way: by going through all
 * that an honest peer could send now. */
static bool allowed(const inf_verbs_link *v, uint32_t imm, uint32_t bytes) {
    uint32_t slots = v->base.config.slots;
    if (imm == inf_imm_count(INF_IMM_LAST, v->rx_head))
        return bytes == 0;
    for (uint64_t r = v->tx_released; r <= v->tx_sent; r++) {
        if (r > v->tx_released && imm == inf_imm_count(INF_IMM_CREDIT, r))
            return bytes == 0;
        if (v->rx_head - v->rx_tail == slots)
            continue;
        if (imm == inf_imm_message(INF_IMM_MESSAGE, v->rx_head, slots, r))
            return bytes <= v->base.config.slot_bytes && bytes <= INF_VERBS_LONG;
        if (imm == inf_imm_message(INF_IMM_LONG, v->rx_head, slots, r)) {
            inf_verbs_header h;
            memcpy(&h, v->ep->rx + v->rx_head % slots * v->ep->stride + INF_VERBS_LINE - sizeof h,
                   sizeof h);
            return bytes == sizeof h && h.magic == INF_VERBS_HEADER_MAGIC &&
                   h.slot == v->rx_head % slots && h.number == v->rx_head && h.released == r &&
                   h.length > INF_VERBS_LONG && h.length <= v->base.config.slot_bytes;
        }
    }
    return false;
}

static void write_header(inf_verbs_link *v, uint64_t released) {
    uint32_t slots = v->base.config.slots;
    inf_verbs_header h = {.magic = INF_VERBS_HEADER_MAGIC,
                          .slot = (uint32_t)(v->rx_head % slots),
                          .number = v->rx_head,
                          .released = released,
                          .length = INF_VERBS_LONG + draw(1000)};
    if (draw(2) == 0) /* one bit is wrong, or one number */
        ((uint8_t *)&h)[draw(sizeof h)] ^= (uint8_t)(1 << draw(8));
    if (draw(8) == 0)
        h.length = draw(4) == 0 ? UINT64_MAX - draw(64) : v->base.config.slot_bytes + draw(3) - 1;
    memcpy(v->ep->rx + v->rx_head % slots * v->ep->stride + INF_VERBS_LINE - sizeof h, &h,
           sizeof h);
}

/* Something that an honest peer would send now, or nearly that, or anything. */
static uint32_t make_imm(inf_verbs_link *v, uint32_t *bytes) {
    uint32_t slots = v->base.config.slots, imm;
    uint64_t r = v->tx_released + draw(v->tx_sent - v->tx_released + 2);
    *bytes = (uint32_t)draw(v->base.config.slot_bytes + 2);
    switch (draw(6)) {
    case 0:
        imm = inf_imm_count(INF_IMM_CREDIT, r);
        *bytes = draw(8) == 0;
        break;
    case 1:
        write_header(v, r);
        imm = inf_imm_message(INF_IMM_LONG, v->rx_head, slots, r);
        *bytes = draw(8) == 0 ? (uint32_t)draw(100) : sizeof(inf_verbs_header);
        break;
    case 2:
        imm = inf_imm_count(INF_IMM_LAST, draw(4) == 0 ? v->rx_head + draw(3) : draw(1 << 30));
        *bytes = 0;
        break;
    default:
        imm = inf_imm_message(INF_IMM_MESSAGE, v->rx_head, slots, r);
        break;
    }
    if (draw(3) == 0)
        imm ^= UINT32_C(1) << draw(32);
    if (draw(64) == 0)
        imm = (uint32_t)draw(UINT64_C(1) << 32);
    if (draw(64) == 0)
        *bytes = (uint32_t)draw(UINT64_C(1) << 32);
    return imm;
}

static void check_bounds(const inf_verbs_link *v) {
    uint32_t slots = v->base.config.slots;
    CHECK(v->rx_head - v->rx_tail <= slots && v->rx_next - v->rx_tail <= v->rx_head - v->rx_tail);
    CHECK(v->tx_sent - v->tx_released <= slots);
    for (uint64_t n = v->rx_tail; n < v->rx_head; n++)
        CHECK(v->rx_len[n % slots] <= v->base.config.slot_bytes);
}

#endif
