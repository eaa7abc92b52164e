/* What the peer sent, before anybody looks at it.
 *
 * Nothing in it is trusted. Its writes can reach the receive ring alone, so what it may do is to
 * break the rules of the ring (wire.h), and each is checked: messages come in order, each in its
 * slot and of its lap, never more than there are slots; lengths fit a slot; counts of released
 * messages only grow, up to what was sent; a credit tells something new, or else its number would
 * be unbounded. The first breach ends the link. The bytes of a message are its reader's to check.
 */
#include "transport/verbs/ring.h"

#include <string.h>

int inf_verbs_link_fail(inf_verbs_link *v) {
    return inf_link_fail(&v->base, v->ep->err.code, "%s", v->ep->err.message);
}

int inf_verbs_violation(inf_verbs_link *v, const char *what, uint64_t got, uint64_t want) {
    inf_verbs_fail(v->ep, INF_EPROTO, "peer %d: %s is %llu, expected %llu", v->base.config.peer,
                   what, (unsigned long long)got, (unsigned long long)want);
    return inf_verbs_link_fail(v);
}

/* Takes the peer's count of released messages. */
static int take_released(inf_verbs_link *v, uint32_t remainder, uint32_t mask, uint32_t least) {
    uint32_t ahead = inf_imm_ahead(remainder, v->tx_released, mask);
    if (ahead < least || ahead > v->tx_sent - v->tx_released)
        return inf_verbs_violation(v, "count of released messages", v->tx_released + ahead,
                                   v->tx_sent);
    v->tx_released += ahead;
    return INF_OK;
}

/* A long message's header lies where the peer can write still: it is read once. */
static int take_header(inf_verbs_link *v, uint32_t slot, uint32_t bytes, uint64_t *length) {
    inf_verbs_header h;
    const uint8_t *at = v->ep->rx + slot * v->ep->stride + INF_VERBS_LINE - sizeof h;
    memcpy(&h, at, sizeof h);
    if (bytes != sizeof h)
        return inf_verbs_violation(v, "size of a header", bytes, sizeof h);
    if (h.magic != INF_VERBS_HEADER_MAGIC || h.slot != slot)
        return inf_verbs_violation(v, "slot of a header", h.slot, slot);
    if (h.number != v->rx_head)
        return inf_verbs_violation(v, "number of a message", h.number, v->rx_head);
    if (h.released != v->tx_released)
        return inf_verbs_violation(v, "count of released messages", h.released, v->tx_released);
    if (h.length <= INF_VERBS_LONG || h.length > v->base.config.slot_bytes)
        return inf_verbs_violation(v, "length of a long message", h.length,
                                   v->base.config.slot_bytes);
    *length = h.length;
    return INF_OK;
}

static int take_message(inf_verbs_link *v, uint32_t imm, uint32_t bytes) {
    uint32_t slots = v->base.config.slots, slot = inf_imm_slot(imm);
    uint64_t length = bytes, most = v->base.config.slot_bytes;
    if (v->rx_head - v->rx_tail == slots)
        return inf_verbs_violation(v, "number of unreleased messages", slots + 1, slots);
    if (slot != v->rx_head % slots)
        return inf_verbs_violation(v, "slot of a message", slot, v->rx_head % slots);
    if (inf_imm_lap(imm) != ((uint32_t)(v->rx_head / slots) & INF_IMM_LOW_MASK))
        return inf_verbs_violation(v, "lap of a message", inf_imm_lap(imm), v->rx_head / slots);
    int rc = take_released(v, inf_imm_released(imm), INF_IMM_LOW_MASK, 0);
    if (rc != INF_OK)
        return rc;
    if (inf_imm_kind(imm) == INF_IMM_LONG)
        rc = take_header(v, slot, bytes, &length);
    else if (bytes > (most < INF_VERBS_LONG ? most : INF_VERBS_LONG))
        rc = inf_verbs_violation(v, "length of a message", bytes, most);
    if (rc != INF_OK)
        return rc;
    v->rx_len[slot] = length;
    v->rx_head++;
    return INF_OK;
}

int inf_verbs_arrival(inf_verbs_link *v, uint32_t imm, uint32_t bytes) {
    int kind = inf_imm_kind(imm);
    if (v->last_word)
        return inf_verbs_violation(v, "number of messages after the last", 1, 0);
    if (kind == INF_IMM_MESSAGE || kind == INF_IMM_LONG)
        return take_message(v, imm, bytes);
    if (bytes != 0)
        return inf_verbs_violation(v, "length of a credit", bytes, 0);
    if (kind == INF_IMM_CREDIT) /* one that tells nothing new breaks the receive queue's rule */
        return take_released(v, imm & INF_IMM_COUNT_MASK, INF_IMM_COUNT_MASK, 1);
    if ((imm & INF_IMM_COUNT_MASK) != (v->rx_head & INF_IMM_COUNT_MASK))
        return inf_verbs_violation(v, "number of messages sent", imm & INF_IMM_COUNT_MASK,
                                   v->rx_head);
    v->last_word = true;
    return INF_OK;
}
