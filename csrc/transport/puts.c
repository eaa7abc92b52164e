/* The public functions for puts and notes: checks, and the answer of links that have none. */
#include "transport/link_impl.h"

#include <stdatomic.h>
#include <string.h>

/* INF_OK if the link lives and can. */
static int check(const inf_link *link) {
    if (!link)
        return INF_EINVAL;
    if (link->err.code < 0)
        return link->err.code;
    return link->ops->puts ? INF_OK : INF_EUNSUPPORTED;
}

int inf_link_use_region(inf_link *link, inf_region *region) {
    int rc = check(link);
    if (rc == INF_OK)
        rc = region ? link->ops->puts->use_region(link, region) : INF_EINVAL;
    return rc;
}

int inf_link_grant(inf_link *link, uint64_t offset, uint64_t bytes, inf_grant *out) {
    int rc = check(link);
    if (rc == INF_OK)
        rc = out && bytes > 0 ? link->ops->puts->grant(link, offset, bytes, out) : INF_EINVAL;
    return rc;
}

int inf_link_revoke(inf_link *link, uint32_t id) {
    int rc = check(link);
    return rc == INF_OK ? link->ops->puts->revoke(link, id) : rc;
}

int inf_link_put(inf_link *link, const inf_put *puts, uint32_t n) {
    int rc = check(link);
    if (rc == INF_OK)
        rc = puts && n > 0 && n <= INF_PUT_MAX ? link->ops->puts->put(link, puts, n) : INF_EINVAL;
    return rc;
}

int inf_link_put_limit(inf_link *link, uint64_t bytes) {
    int rc = check(link);
    if (rc == INF_OK)
        link->ops->puts->limit(link, bytes);
    return rc;
}

uint64_t inf_link_put_pending(inf_link *link) {
    return check(link) == INF_OK ? link->ops->puts->pending(link) : 0;
}

/* The word before a note, by which it is published. */
static _Atomic uint64_t *told_word(uint8_t *note) {
    return (_Atomic uint64_t *)(void *)(note - sizeof(uint64_t));
}

int inf_link_tell(inf_link *link, const void *data, uint64_t bytes) {
    if (!link || !data || bytes > INF_LINK_TOLD)
        return INF_EINVAL;
    uint8_t *note = link->ops->note ? link->ops->note(link, true) : NULL;
    if (!note)
        return INF_EUNSUPPORTED;
    if (atomic_load_explicit(told_word(note), memory_order_relaxed) != 0)
        return INF_EFULL;
    memcpy(note, data, bytes);
    atomic_store_explicit(told_word(note), 1, memory_order_release);
    return INF_OK;
}

int inf_link_told(const inf_link *link, void *data, uint64_t bytes) {
    if (!link || bytes > INF_LINK_TOLD)
        return INF_EINVAL;
    uint8_t *note = link->ops->note ? link->ops->note(link, false) : NULL;
    if (!note)
        return INF_EUNSUPPORTED;
    if (atomic_load_explicit(told_word(note), memory_order_acquire) == 0)
        return INF_AGAIN;
    if (bytes > 0)
        memcpy(data, note, bytes);
    return INF_OK;
}
