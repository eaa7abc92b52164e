/* The slots of query links, as memory that the device reaches: queries go from its registers into
 * the slot, partials from the slot into its registers, at both ends, and no thread copies them.
 *
 *  1. Slots are pinned before a thread gets the link, and unpinned right before the link is closed.
 *     A slot that could not be pinned is copied through the backend's own memory.
 *  2. Of each slot as much is pinned as messages have of a decode step, or of half of a prefill
 *     step of 4,096 tokens of an 8B model, rather than memory that only longer ones would touch:
 *     pinned pages cost memory, and those of a slot cost none before. A message is used in place
 *     only if all of it is pinned.
 *  3. A slot that is being filled (prepared) is posted after the kernel that fills it: the lane was
 *     synced past it, or said that the queries have left.
 *  4. A slot that is being read (polled) is released, and its link closed or let go of, after the
 *     last kernel that reads it, likewise. The step thread keeps such slots as inf_target.held
 *     until the next layer's queries have left: they come after that kernel in the lane. The query
 *     server's answer is done when it returns.
 *  5. The peer may write into either slot at any time. Nothing that a kernel reads there is an
 *     index or a length: a peer that breaks the protocol spoils numbers that are its own to give.
 */
#include "dist/internal.h"

#include <unistd.h>

/* 2,048 rows of 32 heads of 128 numbers in f32, with what else is in a message. */
enum { PINNED_OF_SLOT = 33 << 20 };

/* The index-th stretch of slots that are pinned together; no bytes after the last one.
 * Pages are whole, and no page is in two stretches. */
typedef struct stretch {
    uint8_t *at;
    uint64_t bytes;
    uint32_t next; /* slot after it */
} stretch;

static bool next_stretch(const inf_link *link, uint32_t slot, stretch *s) {
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), most = inf_link_slot_bytes(link);
    void *at = NULL;
    most = most < PINNED_OF_SLOT ? most : PINNED_OF_SLOT;
    *s = (stretch){.next = slot};
    while (inf_link_slot(link, s->next, &at)) {
        uint64_t before = (uintptr_t)at % page;
        uint8_t *from = (uint8_t *)at - before;
        uint64_t bytes = (before + most + page - 1) / page * page;
        uint64_t gap =
            (uint64_t)((uintptr_t)from - (uintptr_t)s->at); /* from the stretch's begin */
        if (s->bytes != 0 && gap > s->bytes) {
            break;
        }
        s->at = s->bytes == 0 ? from : s->at;
        s->bytes = s->bytes == 0 ? bytes : gap + bytes;
        s->next++;
    }
    return s->bytes != 0;
}

void inf_slots_pin(inf_dist *d, inf_link *link) {
    stretch s;
    bool ok = d->ops->host_pin != NULL;
    for (uint32_t slot = 0; ok && next_stretch(link, slot, &s); slot = s.next) {
        ok = d->ops->host_pin(d->backend, s.at, s.bytes) == INF_OK;
    }
}

void inf_query_link_close(inf_dist *d, inf_link *link) {
    stretch s;
    for (uint32_t slot = 0;
         link != NULL && d->ops->host_unpin != NULL && next_stretch(link, slot, &s);
         slot = s.next) {
        d->ops->host_unpin(d->backend, s.at);
    }
    inf_link_close(link);
}
