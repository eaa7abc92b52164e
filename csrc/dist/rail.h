/* Moves, the pieces that they travel in, and the lanes that these go over. */
#ifndef INF_DIST_RAIL_H
#define INF_DIST_RAIL_H

#include <stdatomic.h>
#include <stdbool.h>

#include "dist/wire.h"
#include "infinite/link.h"
#include "kernels/backend.h"

typedef struct inf_move inf_move;

/* Blocks [first, first + n) of a move. */
typedef struct inf_stretch {
    int32_t first, n;
} inf_stretch;

/* Blocks of a move. AGAIN: of a piece that was begun and whose end is not known; its first block is
 * AGAIN_FIRST. The receiver has all of such a piece or nothing of it, so it is never joined with
 * others. */
enum { INF_MOVE_WAITS, INF_MOVE_AGAIN, INF_MOVE_AGAIN_FIRST, INF_MOVE_BEGUN, INF_MOVE_ACKED };

/* One block move. */
struct inf_move {
    inf_move *next;
    uint32_t handle, generation, first;
    int32_t n;
    int32_t begun;  /* no block before this one waits */
    int32_t acked;  /* blocks that have landed, in any order */
    int32_t pieces; /* under way */
    uint64_t ticket;
    int32_t status;   /* the first refusal: nothing more is begun */
    uint8_t *state;   /* [n] INF_MOVE_*, behind blocks */
    int32_t blocks[]; /* [n], a copy of the caller's list */
};

typedef struct inf_moves {
    inf_move *head, *tail;
} inf_moves;

/* A piece of a move, at the sender. */
enum { INF_PIECE_FREE, INF_PIECE_ASKED, INF_PIECE_PUTTING, INF_PIECE_SENT };

typedef struct inf_piece {
    int32_t state;
    inf_move *move;
    inf_stretch part;
    uint64_t order; /* of its message that is not answered (ASKED, SENT) */
    uint64_t put;   /* bytes of it that were put */
    uint64_t asked_ns;
    /* Why this end lets go of its grants without having put all of it: what ends the move, or
     * INF_AGAIN, and the piece is begun anew. */
    int32_t given_up;
    uint32_t n_grants;
    inf_grant grants[INF_WIRE_PIECE_BLOCKS];
} inf_piece;

/* A piece at the receiver: its blocks are claimed in the span from the ask to the acknowledgement.
 */
enum {
    INF_LANDING_FREE,
    INF_LANDING_CLAIMING, /* a dead rail has the blocks still */
    INF_LANDING_GRANTING,
    INF_LANDING_GRANTED,
    INF_LANDING_REVOKING, /* the sender has said that it is done */
    INF_LANDING_UNDOING,  /* not every grant could be had */
    INF_LANDING_LATE,     /* granted of an offered pool, and given up: nothing is claimed */
};

typedef struct inf_landing {
    int32_t state;
    inf_wire_move ask;
    int32_t outcome;       /* of a piece that the sender says has landed */
    const int32_t *blocks; /* the span's list */
    uint32_t done;         /* blocks granted */
    uint64_t revoked;      /* grants, a bit each */
    uint32_t n_grants;
    inf_grant grants[INF_WIRE_PIECE_BLOCKS];
    uint64_t granted_ns;
} inf_landing;

/* Blocks of a lane that is over, which its sender may write for some more time. */
typedef struct inf_late inf_late;
struct inf_late {
    inf_late *next;
    inf_wire_move ask;
    uint64_t until_ns;
};

/* A move lane. Its thread's, the mover's or the lander's, but for dead. */
typedef struct inf_rail {
    inf_link *link;
    uint32_t peer, number;
    uint64_t lane;      /* in every message; at the receiver as the last one had it */
    bool out;           /* this end sends */
    inf_region *region; /* of the pool, that puts use; NULL: there are none */
    _Atomic bool puts;  /* there is one, and as far as is known the peer has one too */
    /* Of lanes whose puts are copies: direct.c. in: the pool is offered. out: the peer's pool. */
    bool offered, wants; /* wants: it is not opened so far, and may be */
    uint8_t *far;        /* NULL: it is not opened */
    uint64_t far_bytes;
    inf_pool_key far_key;
    _Atomic int32_t dead; /* of rails beyond the first; the first one's death is the peer's */

    inf_piece pieces[INF_WIRE_PIECES]; /* out */
    uint64_t order;                    /* messages sent */
    uint64_t heard_ns;                 /* when one began to be waited for, or an answer came */
    uint64_t limit;                    /* of bytes put in flight, as the link was told */

    inf_landing landings[INF_WIRE_PIECES]; /* in */
    inf_landing *busy; /* is being granted, revoked or undone: nothing is polled before it is */
} inf_rail;

#endif
