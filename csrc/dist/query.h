/* A debtor's query message at the creditor, from its slot to the slot of its answer. */
#ifndef INF_DIST_QUERY_H
#define INF_DIST_QUERY_H

#include "dist/internal.h"

/* A message that is answered, in the scratch of the batch that it belongs to. The head, groups and
 * entries are copies: shared memory can change under the reader. */
struct inf_query {
    inf_link *link;
    uint32_t owner;
    inf_wire_head head;
    inf_wire_group *groups;  /* [n_groups] */
    inf_wire_entry *entries; /* [n_entries] */
    const int32_t **lists;   /* [n_entries]: the spans' block lists, of groups that were taken */
    int32_t *statuses;       /* [n_groups] */
    uint64_t bytes;          /* of the message */
    const float *q;          /* [n_rows, heads, head_dim], in the message's slot */
    uint8_t *out;            /* the answer's slot */
    float *o, *lse;          /* in it: [n_rows, heads, head_dim], [n_rows, heads] */
    bool asked;              /* its spans are in the call under way */
    int32_t status;          /* of its answer; < 0 ends its peer */
};

/* Checks all of a message but what the span table alone can tell, and copies its head into m and
 * its groups and entries to where m points. INF_EPROTO: it is none. INF_AGAIN: it is one for all
 * that its head says, but it has more than groups or entries, and nothing else was looked at. */
int inf_query_parse(const inf_dist *d, const uint8_t *msg, uint64_t len, uint32_t groups,
                    uint32_t entries, inf_query *m);

/* Takes the spans of each group and fills in the statuses; a group that is refused holds none.
 * INF_AGAIN: some group waits for a wave, at most as long as wait says, and nothing is held. */
int inf_query_take(inf_dist *d, inf_query *m, inf_wait *wait);
void inf_query_put(inf_dist *d, const inf_query *m);

/* What is to be computed for the groups that were taken; returns the number of args. */
uint32_t inf_query_args(const inf_dist *d, const inf_query *m, inf_attn *args);

/* Writes the answer around its numbers, and returns its bytes. */
uint64_t inf_query_finish(const inf_dist *d, const inf_query *m);

#endif
