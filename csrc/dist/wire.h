/* What travels on the two lanes. Numbers are little endian (both ends are x86-64 or aarch64); every
 * message begins with inf_wire_head, and every size in it is checked against the message's length.
 *
 * query lane, debtor -> creditor: head, groups[n_groups], entries[n_entries], pad to 64,
 *                                 q f32 [rows, heads, head_dim]
 *             creditor -> debtor: head (echoed), status i32 [n_groups], pad to 64,
 *                                 o f32 [rows, heads, head_dim], lse f32 [rows, heads], base e
 * move lanes, where bytes travel in messages:
 *   move    ->  head, move, pad to 64, blocks
 *   ack     <-  head, move with status and landed filled in
 * and where both ends can put (infinite/link.h), so that they go from pool to pool:
 *   ask     ->  head, move: where may [first, first + n) be put?
 *
 *   grant   <-  head, move with status, grants[n_entries]; they cover the blocks in order
 *
 *   landed  ->  head, move: all has been put; or, with a status, nothing more will be
 *
 *   ack     <-  as above; from here on the grants are over
 *
 * A grant of status 0 without grants says that the blocks are there already (landed is first + n:
 * the rail on which they had come died before it could say so), or (landed is 0) that they are to
 * be sent in messages. A piece that is sent again is the same one, or a part of it.
 *
 * A peer may have several move lanes, its rails. Pieces of a move travel on any of them and land in
 * any order; what is readable is what has landed without a gap from the beginning. Per lane there
 * are at most INF_WIRE_PIECES pieces under way, each with one message that is not answered; answers
 * come in the order of the messages.
 *
 * A group is one request's rows at one creditor; its entries are that request's spans there, so
 * that the rows travel once and one merged partial comes back.
 *
 * What a message has no use for (reserved, the counts of a move's head, an unanswered move's
 * status) is 0 and is checked as such, so that a later version can give it a meaning. */
#ifndef INF_DIST_WIRE_H
#define INF_DIST_WIRE_H

#include <stdbool.h>
#include <stdint.h>

#include "infinite/device.h"

#define INF_WIRE_MAGIC 0x31464e49u /* "INF1" */

enum {
    INF_WIRE_QUERY = 1,
    INF_WIRE_PARTIAL = 2,
    INF_WIRE_MOVE = 3,
    INF_WIRE_ACK = 4,
    INF_WIRE_ASK = 5,
    INF_WIRE_GRANT = 6,
    INF_WIRE_LANDED = 7,
};

enum {
    /* While one piece is put or written, the other is asked for or on its way. It is the least that
     * links have as slots, so that there is always one for the answer. */
    INF_WIRE_PIECES = 2,
    INF_WIRE_PIECE_BLOCKS = INF_PUT_MAX, /* of an ask */
};

typedef struct inf_wire_head {
    uint32_t magic;
    uint32_t kind;
    uint64_t step_id;
    uint32_t layer;
    uint32_t n_groups, n_entries, n_rows;
    uint64_t bytes; /* of the whole message */
    uint64_t
        lane; /* of the debtor's choice, in all messages between it and a creditor; for traces */
    uint32_t half; /* of a query: which half of the step's rows it is of, 0 for a whole step */
    uint32_t reserved[3];
} inf_wire_head;

typedef struct inf_wire_group {
    uint32_t row_off, rows; /* groups cover the rows in order, without gap */
    uint32_t q_pos0;        /* position of the first row */
    uint32_t entry_off, n_entries;
    uint32_t reserved[3];
} inf_wire_group;

typedef struct inf_wire_entry {
    uint32_t handle, generation;
    uint32_t pos0, n_tokens; /* of the span */
} inf_wire_entry;

typedef struct inf_wire_move {
    uint32_t handle, generation;
    uint32_t first, n; /* block indexes in the span */
    uint64_t ticket;
    int32_t status;  /* in an answer; in landed: why the sender gave up */
    uint32_t landed; /* blocks of the span that are readable now */
} inf_wire_move;

_Static_assert(sizeof(inf_wire_head) == 64, "on the wire");
_Static_assert(sizeof(inf_wire_group) == 32, "on the wire");
_Static_assert(sizeof(inf_wire_entry) == 16, "on the wire");
_Static_assert(sizeof(inf_wire_move) == 32, "on the wire");

/* What names a query within its step, for traces. */
static inline uint64_t inf_wire_part(const inf_wire_head *h) {
    return (uint64_t)h->half << 16 | h->layer;
}

static inline uint64_t inf_pad64(uint64_t n) { return (n + 63) & ~(uint64_t)63; }

/* Bytes before the q rows of a query, and before the o rows of a partial. */
static inline uint64_t inf_wire_query_head(uint32_t groups, uint32_t entries) {
    return inf_pad64(sizeof(inf_wire_head) + (uint64_t)groups * sizeof(inf_wire_group) +
                     (uint64_t)entries * sizeof(inf_wire_entry));
}

static inline uint64_t inf_wire_partial_head(uint32_t groups) {
    return inf_pad64(sizeof(inf_wire_head) + (uint64_t)groups * sizeof(int32_t));
}

static inline uint64_t inf_wire_move_head(void) {
    return inf_pad64(sizeof(inf_wire_head) + sizeof(inf_wire_move));
}

/* Bytes of a grant; the least that a slot of the move lane has. */
static inline uint64_t inf_wire_grant_bytes(uint32_t grants) {
    return inf_wire_move_head() + inf_pad64((uint64_t)grants * sizeof(inf_grant));
}

/* What an answer may say: done, or that a span is over or not filled so far. Other statuses name
 * faults of the one who reports them, so no peer may choose them. */
static inline bool inf_wire_status_ok(int32_t status) {
    return status == INF_OK || status == INF_ESTALE;
}

#endif
