/* Puts of a piece that was granted, at the sender.
 *
 * They are cut to what may be in flight: little while queries and partials share the wire, more
 * otherwise. They need no copy: the NIC gathers blocks from this pool and scatters them into the
 * other one. Between GPUs of one host a put is a copy (direct.c), complete when it returns.
 *
 * A piece whose move was refused meanwhile, or whose time is over (direct.c), is not put, but the
 * peer is told: its grant must end. */
#include "dist/internal.h"
#include "dist/send.h"

/* Bytes put in flight. At 25 GB/s and a round trip of 5 us the first is about half of the wire. */
#define STEP_PUTS (UINT64_C(64) << 10)
#define IDLE_PUTS (UINT64_C(4) << 20)
/* Others' queries are likely to follow each other faster. */
#define ANSWERS_NS UINT64_C(10000000)

static int set_limit(inf_dist *d, inf_rail *r) {
    if (r->far != NULL) { /* there is no wire that messages would share with copies */
        r->limit = 2 * INF_PIECE_BYTES;
        return INF_OK;
    }
    bool shared =
        atomic_load(&d->stepping) || inf_now() - atomic_load(&d->answered_ns) < ANSWERS_NS;
    uint64_t limit = shared ? STEP_PUTS : IDLE_PUTS;
    if (limit == r->limit) {
        return INF_OK;
    }
    r->limit = limit;
    return inf_link_put_limit(r->link, limit);
}

/* The next stretches of the piece, as many bytes as may be in flight. */
static uint32_t stretches(const inf_dist *d, const inf_rail *r, const inf_piece *c,
                          inf_put out[INF_PUT_MAX], uint64_t *bytes) {
    uint64_t at = c->put, block = d->kv.block_bytes, end = inf_piece_bytes(d, c);
    end = end - at < r->limit / 2 ? end : at + r->limit / 2; /* one half is on its way */
    uint32_t n = 0, g = 0;
    uint64_t before = 0; /* bytes of the grants before g */
    for (; n < INF_PUT_MAX && at < end; n++) {
        while (at - before >= c->grants[g].bytes) {
            before += c->grants[g++].bytes;
        }
        uint64_t len = end - at, in_block = block - at % block,
                 in_grant = before + c->grants[g].bytes - at;
        len = len < in_block ? len : in_block;
        len = len < in_grant ? len : in_grant;
        uint64_t from = (uint64_t)c->move->blocks[c->part.first + (int32_t)(at / block)] * block;
        out[n] = (inf_put){.offset = from + at % block,
                           .remote = c->grants[g].address + (at - before),
                           .key = c->grants[g].key,
                           .bytes = (uint32_t)len};
        at += len;
    }
    *bytes = at - c->put;
    return n;
}

/* Puts what may be put now: all of what is wanted, or as much as there is room for (INF_AGAIN). */
static int put_blocks(inf_dist *d, inf_rail *r, inf_piece *c) {
    inf_put puts[INF_PUT_MAX];
    int status = set_limit(d, r);
    while (status == INF_OK && c->put < inf_piece_bytes(d, c)) {
        uint64_t bytes = 0;
        uint32_t n = stretches(d, r, c, puts, &bytes);
        status = r->far != NULL ? inf_direct_copy(d, r, puts, n, c->asked_ns)
                                : inf_link_put(r->link, puts, n);
        c->put += status == INF_OK ? bytes : 0;
    }
    return status;
}

int inf_puts_run(inf_dist *d, inf_rail *r, inf_piece *c) {
    int status = INF_OK;
    bool direct = r->region == NULL;
    if (direct && r->far == NULL) { /* another piece has found that it does not work */
        c->given_up = INF_AGAIN;
    } else if (c->move->status == INF_OK && c->given_up == INF_OK) {
        status = put_blocks(d, r, c);
    }
    if (direct && (status == INF_ETIMEOUT || status == INF_EIO)) {
        c->given_up = status == INF_EIO ? INF_AGAIN : status;
        status = INF_OK;
    }
    void *buf = NULL;
    status = status == INF_OK ? inf_link_prepare(r->link, &buf) : status;
    if (status == INF_OK) {
        inf_send_head(r, c, INF_WIRE_LANDED, inf_wire_move_head(), buf);
        status = inf_send_post(d, r, c, INF_PIECE_SENT, inf_wire_move_head());
    }
    return status;
}
