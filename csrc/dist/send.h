/* What sends pieces of moves: in messages (send.c) and by puts (puts.c). */
#ifndef INF_DIST_SEND_H
#define INF_DIST_SEND_H

#include "dist/internal.h"

/* Bytes of a piece that is put: the round trips of asking are small beside them, and so is what
 * they hold up. */
#define INF_PIECE_BYTES (UINT64_C(8) << 20)

static inline uint64_t inf_piece_bytes(const inf_dist *d, const inf_piece *c) {
    return (uint64_t)c->part.n * d->kv.block_bytes;
}

/* --- send.c --- */

void inf_send_head(const inf_rail *r, const inf_piece *c, uint32_t kind, uint64_t bytes,
                   uint8_t *buf);
/* Posts the piece's message, which is not answered from now on. */
int inf_send_post(inf_dist *d, inf_rail *r, inf_piece *c, int32_t state, uint64_t bytes);

/* --- puts.c --- */

/* Puts, and says so when it was all, or will be no more. INF_AGAIN: there is no room now. */
int inf_puts_run(inf_dist *d, inf_rail *r, inf_piece *c);

#endif
