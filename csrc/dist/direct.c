/* Moves between instances of one host whose pools are GPUs': the sender copies blocks from its pool
 * into the other one, GPU to GPU, and no byte passes through host memory.
 *
 * The receiving end of a move lane exports its pool and leaves the key with the link
 * (inf_link_tell), and the sending end opens it; from then on the lane is one that can put. The
 * pieces' protocol is that of puts (puts.c, grants.c), and a put is a copy.
 *
 *  1. A key is told only over a link whose memory both ends share, so only to a member of the
 *     cluster that passed the signed handshake of this very link, on this host.
 *  2. Opening gives that member all of the pool to write, as long as it has it open: grants are not
 *     guarded by hardware as they are with a NIC. A member that is not trusted with that is not to
 *     be a member. How big its pool is is not its word: the device knows what it has opened, and a
 *     pool that is smaller than the key's note says is not used. What the peer grants is checked:
 * it lies within that, and the pool is not this end's own.
 *  3. Copies are complete, by a sync of the lane, before LANDED leaves; the receiver needs no
 * flush.
 *  4. Nothing can revoke a grant that its sender makes no use of. So the sender begins to copy
 *     COPY_NS at most after it asked, on a lane that is well, and else says that it will not, which
 *     ends that move and nothing besides; the receiver gives granted blocks to others after a
 *     multiple of that at the earliest, if it hears nothing and however the lane ends (grants.c).
 *  5. Where a key cannot be had or opened (another host, another driver, GPUs that do not see each
 *     other, a pool of host memory or cut over ranks) blocks travel in messages, and the reason is
 *     noted. */
#include "dist/internal.h"

#include <stdio.h>
#include <string.h>

#define COPY_NS UINT64_C(2000000000)

/* What the receiver tells. */
typedef struct pool_note {
    uint32_t magic, bytes;
    uint64_t block_bytes, num_blocks;
    inf_pool_key key;
} pool_note;

enum { NOTE_MAGIC = 0x504e4931 }; /* "1INP" */

_Static_assert(sizeof(pool_note) <= INF_LINK_TOLD, "a note fits");

bool inf_direct_offer(inf_dist *d, inf_link *link) {
    const char *why = "";
    pool_note n = {.magic = NOTE_MAGIC,
                   .bytes = sizeof n,
                   .block_bytes = d->kv.block_bytes,
                   .num_blocks = (uint64_t)d->num_blocks};
    if (inf_link_told(link, NULL, 0) == INF_EUNSUPPORTED) {
        return false;
    }
    if (d->backend->ranks > 1) {
        inf_rails_note(d, INF_POOL_IS_CUT);
        return false;
    }
    if (d->ops->pool_export == NULL) {
        return false;
    }
    if (d->ops->pool_export(d->backend, d->pool, &n.key, &why) != INF_OK) {
        inf_rails_note(d, why);
        return false;
    }
    return inf_link_tell(link, &n, sizeof n) == INF_OK;
}

bool inf_direct_wants(inf_dist *d, const inf_link *link) {
    return d->ops->pool_open != NULL && inf_link_told(link, NULL, 0) != INF_EUNSUPPORTED;
}

/* Opens the pool of a note that fits; NULL, and why not. */
static uint8_t *open_pool(inf_dist *d, inf_rail *r, const pool_note *n, const char **why) {
    uint64_t bytes = 0; /* that are there, whatever the peer says */
    r->far_bytes = n->block_bytes * n->num_blocks;
    r->far_key = n->key;
    r->far = d->ops->pool_open(d->backend, &n->key, &bytes, why);
    if (r->far == d->pool) { /* our own key, come back */
        inf_direct_close(d, r);
        *why = "the peer's pool is ours";
    } else if (r->far != NULL && bytes < r->far_bytes) {
        inf_direct_close(d, r);
        *why = "the peer's pool is smaller than it says";
    }
    return r->far;
}

void inf_direct_open(inf_dist *d, inf_rail *r) {
    pool_note n;
    int status = inf_link_told(r->link, &n, sizeof n);
    if (status == INF_AGAIN) { /* the peer's end is not that far, or has nothing to tell */
        return;
    }
    r->wants = false; /* one try */
    const char *why = "the peer's pool is not as ours";
    if (status == INF_OK && n.magic == NOTE_MAGIC && n.bytes == sizeof n &&
        n.block_bytes == d->kv.block_bytes && n.num_blocks > 0 && n.num_blocks <= INT32_MAX &&
        open_pool(d, r, &n, &why) != NULL) {
        atomic_store(&r->puts, true);
    } else {
        inf_rails_note(d, why);
    }
}

void inf_direct_close(inf_dist *d, inf_rail *r) {
    if (r->far != NULL) {
        d->ops->pool_close(d->backend, &r->far_key, r->far);
        r->far = NULL;
    }
}

/* Once; INF_EIO: the lane failed, and nothing of it is under way any more. */
static int copy_all(inf_dist *d, const inf_rail *r, const inf_put *puts, uint32_t n,
                    uint64_t asked_ns) {
    int status = inf_lane_take(d, &d->moving);
    if (inf_now() - asked_ns > COPY_NS) { /* after the lane, which may take its time to open */
        return INF_ETIMEOUT;
    }
    if (status != INF_OK) {
        return status == INF_ENOMEM ? INF_AGAIN : status;
    }
    for (uint32_t i = 0; i < n; i++) {
        d->ops->copy(d->moving.lane, r->far + puts[i].remote, d->pool + puts[i].offset,
                     puts[i].bytes);
    }
    return inf_lane_sync(d, &d->moving);
}

int inf_direct_copy(inf_dist *d, inf_rail *r, const inf_put *puts, uint32_t n, uint64_t asked_ns) {
    int status = inf_link_status(r->link, NULL);
    if (status != INF_OK) {
        return status;
    }
    for (uint32_t i = 0; i < n; i++) {
        const inf_put *p = &puts[i];
        if (p->remote > r->far_bytes || p->bytes > r->far_bytes - p->remote) {
            return INF_EPROTO;
        }
    }
    status = copy_all(d, r, puts, n, asked_ns);
    if (status == INF_EIO) { /* the lane's fault, or the pool's: that shows on another lane */
        status = copy_all(d, r, puts, n, asked_ns);
    }
    if (status == INF_EIO) {
        inf_rails_note(d, "copies into the peer's pool failed");
        atomic_store(&r->puts, false);
        inf_direct_close(d, r);
    }
    return status;
}
