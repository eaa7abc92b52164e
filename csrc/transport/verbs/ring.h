/* The verbs link's own state, and the function that takes what the peer sent; tests look in here.
 */
#ifndef INF_VERBS_RING_H
#define INF_VERBS_RING_H

#include "transport/verbs/verbs_impl.h"

typedef struct inf_verbs_link {
    inf_link base;
    inf_verbs_endpoint *ep;
    uint64_t tx_sent;     /* messages posted */
    uint64_t tx_released; /* of them, those that the peer said it has released */
    uint64_t rx_head;     /* messages arrived */
    uint64_t rx_next;     /* polled */
    uint64_t rx_tail;     /* released */
    uint64_t rx_told;     /* released, as the peer was told last */
    uint64_t rx_len[INF_LINK_MAX_SLOTS];
    bool recv_armed, send_armed; /* a completion will make an event */
    bool last_word;              /* the peer closed; nothing comes after it */
    bool gone;                   /* the socket ended */
    uint32_t idle;               /* fruitless polls since the socket was looked at */
    uint64_t gone_ms;            /* when it ended */
    uint64_t seen_rx, seen_done; /* counters when ready looked last */
    uint64_t active_ms;          /* when one of them last moved */
    uint64_t stuck_ms;           /* when the send queue last moved, or something got in flight */
    uint64_t nudged_ms;          /* when work was posted for the sake of work under way */
    uint64_t stuck_limit_ms;
} inf_verbs_link;

/* Takes an arrival: checks it and counts it. A status < 0 if the peer broke a rule; the link is
 * then dead. */
int inf_verbs_arrival(inf_verbs_link *v, uint32_t imm, uint32_t bytes);

/* The peer broke a rule: ends the link. */
int inf_verbs_violation(inf_verbs_link *v, const char *what, uint64_t got, uint64_t want);

/* watch.c. The link is open from now on. */
void inf_verbs_watch_begin(inf_verbs_link *v);
/* Looks after a link on which nothing moves; a status < 0 if its device completes nothing any more.
 */
int inf_verbs_watch(inf_verbs_link *v);

/* Passes the endpoint's failure on to the link. */
int inf_verbs_link_fail(inf_verbs_link *v);

#endif
