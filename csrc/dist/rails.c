/* Move lanes: their coming and going, and the registered memory that they put from and into.
 *
 * A peer's first rail lives and dies with the peer. The others come when the control plane has
 * connected them and may die alone: pieces that were under way go over those that are left.
 *
 * The pool is registered once with every device that a move lane is on, when the first one comes,
 * and stays registered: peers come and go more often than that is worth undoing. Where it cannot be
 * (another provider, locked memory's limit, no memory windows, memory of a GPU that the NIC cannot
 * reach, a pool in several memories) blocks travel in messages. */
#include "dist/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Beyond the first ones, in one direction. */
enum { MAX_EXTRA = INF_LINK_WAIT_MAX - INF_MAX_PEERS };

/* --- regions --- */

/* Frees what no link uses; false when every place is taken. */
static bool make_place(inf_dist *d, int *place) {
    *place = -1;
    for (int i = 0; i < INF_MAX_REGIONS; i++) {
        if (d->regions[i].region != NULL && inf_region_close(d->regions[i].region) == INF_OK) {
            d->regions[i].region = NULL;
        }
        if (d->regions[i].region == NULL) {
            *place = i;
        }
    }
    return *place >= 0;
}

/* Why blocks travel in messages, "" if they need not. */
void inf_rails_note(inf_dist *d, const char *why) {
    pthread_mutex_lock(&d->note_lock);
    snprintf(d->no_puts, sizeof d->no_puts, "%s", why);
    pthread_mutex_unlock(&d->note_lock);
}

static void read_note(inf_dist *d, inf_peer_rails *out) {
    _Static_assert(sizeof out->no_puts == sizeof d->no_puts, "copied whole");
    pthread_mutex_lock(&d->note_lock);
    memcpy(out->no_puts, d->no_puts, sizeof out->no_puts);
    pthread_mutex_unlock(&d->note_lock);
}

static inf_region *region_on(inf_dist *d, inf_verbs_device *device) {
    for (int i = 0; i < INF_MAX_REGIONS; i++) {
        if (d->regions[i].region != NULL && d->regions[i].device == device) {
            return d->regions[i].region;
        }
    }
    /* Devices that have gone leave regions behind; the others are registered anew when needed. */
    int place;
    inf_region *region = NULL;
    inf_err err = {0};
    inf_memory memory = {.address = (uint64_t)(uintptr_t)d->pool,
                         .bytes = (uint64_t)d->num_blocks * d->kv.block_bytes,
                         .kind = INF_MEMORY_HOST};
    if (d->backend->ranks > 1) {
        inf_rails_note(d, INF_POOL_IS_CUT);
        return NULL;
    }
    if (!d->backend->host_memory) {
        memory.kind = INF_MEMORY_DEVICE;
        memory.ops = inf_device_memory(d);
    }
    if (memory.kind == INF_MEMORY_DEVICE && memory.ops == NULL) {
        inf_rails_note(d, "the pool is a GPU's that no NIC can reach");
    } else if (!make_place(d, &place)) {
        inf_rails_note(d, "the pool is registered with too many devices");
    } else if (inf_region_open(device, &memory, &region, &err) != INF_OK) {
        inf_rails_note(d, err.message);
        region = NULL;
    } else {
        d->regions[place].device = device;
        d->regions[place].region = region;
        inf_rails_note(d, "");
    }
    return region;
}

/* Makes the link able to put, where that can be; NULL where it cannot. May take long. */
static inf_region *region_for(inf_dist *d, inf_link *link) {
    inf_verbs_device *device = inf_link_verbs_device(link);
    if (device == NULL) {
        return NULL;
    }
    pthread_mutex_lock(&d->region_lock); /* no worker waits for it: this may take long */
    inf_region *region = region_on(d, device);
    if (region != NULL && inf_link_use_region(link, region) != INF_OK) {
        const char *why = "";
        bool bounce = inf_region_way(region, &why) == INF_WAY_BOUNCE;
        inf_rails_note(d, bounce ? why : "the link's device or endpoint has no memory windows");
        region = NULL;
    }
    pthread_mutex_unlock(&d->region_lock);
    return region;
}

int inf_dist_share_pool(inf_dist *d, const char *rdma_device, const char *domain, inf_err *err) {
    inf_verbs_device *device = NULL;
    int status = inf_verbs_device_open(rdma_device, domain, &device, err);
    if (status != INF_OK) {
        return status;
    }
    pthread_mutex_lock(&d->region_lock);
    inf_region *region = region_on(d, device);
    pthread_mutex_unlock(&d->region_lock);
    inf_verbs_device_close(device); /* the region is a user of its own */
    const char *why = "";
    if (region != NULL && inf_region_way(region, &why) == INF_WAY_BOUNCE) {
        return inf_dist_error(err, INF_EUNSUPPORTED, -1, "%s", why);
    }
    if (region == NULL) {
        inf_peer_rails rails;
        read_note(d, &rails);
        return inf_dist_error(err, INF_EUNSUPPORTED, -1, "%s", rails.no_puts);
    }
    return INF_OK;
}

void inf_regions_close(inf_dist *d) {
    for (int i = 0; i < INF_MAX_REGIONS; i++) {
        inf_region_close(d->regions[i].region);
        d->regions[i].region = NULL;
    }
}

/* --- threads beside the devices --- */

void inf_near_add(inf_dist *d, const inf_link *link) {
    const inf_verbs_device *device = inf_link_verbs_device(link);
    uint64_t cpus[INF_CPU_WORDS];
    if (device == NULL || inf_verbs_device_cpus(device, cpus) != INF_OK) {
        return;
    }
    pthread_mutex_lock(&d->note_lock);
    bool more = false;
    for (int i = 0; i < INF_CPU_WORDS; i++) {
        more = more || (cpus[i] & ~d->near[i]) != 0;
        d->near[i] |= cpus[i];
    }
    if (more) {
        atomic_fetch_add(&d->nears, 1);
    }
    pthread_mutex_unlock(&d->note_lock);
}

void inf_near_follow(inf_dist *d, inf_worker *w) {
    uint32_t nears = atomic_load(&d->nears);
    if (nears == w->nears) {
        return;
    }
    w->nears = nears;
    pthread_mutex_lock(&d->note_lock);
    inf_verbs_pin(d->near);
    pthread_mutex_unlock(&d->note_lock);
}

/* --- coming and going --- */

static inf_rail **place_of(inf_dist *d, uint32_t peer, uint32_t number, bool out) {
    inf_peer *p = &d->peers[peer];
    return out ? &p->out[number] : &p->in[number];
}

inf_move_link inf_rail_prepare(inf_dist *d, bool out, inf_link *link) {
    inf_near_add(d, link);
    inf_move_link m = {.link = link, .region = region_for(d, link)};
    m.offered = !out && m.region == NULL && inf_direct_offer(d, link);
    return m;
}

int inf_rail_add(inf_dist *d, uint32_t peer, uint32_t number, bool out, const inf_move_link *m) {
    inf_rail *r = NULL;
    bool extra = number > 0; /* the first ones of all peers have their places */
    int status = extra && d->extra_rails[out] >= MAX_EXTRA ? INF_EFULL : INF_OK;
    if (status == INF_OK) {
        r = calloc(1, sizeof *r);
        status = r != NULL ? INF_OK : INF_ENOMEM;
    }
    if (status != INF_OK) {
        return status;
    }
    r->link = m->link;
    r->peer = peer;
    r->number = number;
    r->out = out;
    r->lane = out ? d->peers[peer].lane : 0;
    r->region = m->region;
    r->offered = m->offered;
    r->wants = out && m->region == NULL && inf_direct_wants(d, m->link);
    atomic_init(&r->puts, m->region != NULL || r->offered);
    *place_of(d, peer, number, out) = r;
    d->extra_rails[out] += extra;
    return INF_OK;
}

void inf_rail_close(inf_dist *d, inf_rail *r) {
    if (r == NULL) {
        return;
    }
    inf_link_close(
        r->link); /* first: grants end with it, and nothing reads from this pool any more */
    inf_direct_close(d, r);
    if (r->out) {
        inf_send_give_up(r);
    } else {
        inf_land_give_up(d, r);
    }
    free(r);
}

void inf_rails_take(inf_dist *d, inf_peer *p, inf_rail **rails) {
    for (int i = 0; i < INF_MAX_RAILS; i++) {
        rails[i] = p->out[i];
        rails[INF_MAX_RAILS + i] = p->in[i];
        d->extra_rails[true] -= i > 0 && p->out[i] != NULL;
        d->extra_rails[false] -= i > 0 && p->in[i] != NULL;
        p->out[i] = p->in[i] = NULL;
    }
}

void inf_rail_fail(inf_dist *d, inf_rail *r, int32_t status) {
    if (r->number == 0 || status == INF_EPROTO) {
        inf_peer_fail(d, r->peer, status, r->link);
    } else {
        atomic_store(&r->dead, status);
        inf_dist_wake(r->out ? d->mover.wake : d->lander.wake);
    }
}

/* Takes the rails that are dead from their peers; their number. */
static uint32_t take_dead(inf_dist *d, bool out, inf_rail **rails) {
    uint32_t n = 0;
    pthread_mutex_lock(&d->lock);
    for (uint32_t i = 0; i < INF_MAX_PEERS; i++) {
        bool dead = atomic_load(&d->peers[i].dead) != INF_OK;
        for (uint32_t k = 0; k < INF_MAX_RAILS; k++) {
            inf_rail **at = place_of(d, i, k, out);
            if (*at != NULL && (dead || atomic_load(&(*at)->dead) != INF_OK)) {
                rails[n++] = *at;
                *at = NULL;
                d->extra_rails[out] -= k > 0;
            }
        }
    }
    pthread_mutex_unlock(&d->lock);
    return n;
}

uint32_t inf_rails_round(inf_dist *d, inf_worker *w, bool out, inf_rail **rails, inf_link **links) {
    /* A close may take a while, and steps need the lock. Until the round begins a detach waits. */
    for (uint32_t n = take_dead(d, out, rails); n-- > 0;) {
        inf_rail_close(d, rails[n]);
    }
    uint32_t n = 0;
    pthread_mutex_lock(&d->lock);
    for (uint32_t i = 0; i < INF_MAX_PEERS; i++) {
        for (uint32_t k = 0; k < INF_MAX_RAILS; k++) {
            inf_rail *r = *place_of(d, i, k, out);
            if (r != NULL) {
                rails[n] = r;
                links[n++] = r->link;
            }
        }
    }
    w->round++;
    pthread_cond_broadcast(&d->changed);
    pthread_mutex_unlock(&d->lock);
    return n;
}

/* --- the door's functions --- */

/* The other end gives a rail anew once its own end of the old one is dead: so is this one, and its
 * thread is about to take it away. The caller holds dist.lock. */
static void end_same(inf_dist *d, uint32_t peer, uint32_t number, bool out) {
    inf_rail **at = place_of(d, peer, number, out);
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += 1;
    if (*at != NULL) {
        inf_rail_fail(d, *at, INF_EPEER);
    }
    while (*at != NULL && pthread_cond_timedwait(&d->changed, &d->lock, &until) == 0) {
    }
}

/* What keeps a rail from being added; the caller holds dist.lock. */
static const char *misfit(inf_dist *d, uint32_t peer, uint32_t number, bool out) {
    if (*place_of(d, peer, number, out) != NULL) {
        return "the peer has that rail";
    }
    if (*place_of(d, peer, 0, out) == NULL || atomic_load(&d->peers[peer].dead) != INF_OK ||
        atomic_load(&d->peers[peer].leaving)) {
        return "the peer's first links are not there";
    }
    return NULL;
}

int inf_dist_peer_rail(inf_dist *d, uint32_t peer, uint32_t number, bool server, inf_link *link,
                       inf_err *err) {
    const char *why = NULL;
    int status = INF_EINVAL;
    if (link == NULL || peer >= INF_MAX_PEERS || number == 0 || number >= INF_MAX_RAILS) {
        why = "a rail needs a peer below 256, a number from 1 to 7 and a link";
    } else if (inf_link_slot_bytes(link) < d->move_bytes) {
        why = "the link's slots are smaller than this device's messages";
    }
    if (why == NULL) {
        inf_move_link m = inf_rail_prepare(d, !server, link);
        pthread_mutex_lock(&d->lock);
        end_same(d, peer, number, !server);
        why = misfit(d, peer, number, !server);
        if (why == NULL) {
            status = inf_rail_add(d, peer, number, !server, &m);
            why = status != INF_OK ? "there are too many rails, or no memory" : NULL;
        }
        pthread_mutex_unlock(&d->lock);
    }
    if (why != NULL) {
        inf_link_close(link);
        return inf_dist_error(err, status, (int32_t)peer, "%s", why);
    }
    inf_dist_wake(server ? d->lander.wake : d->mover.wake);
    return INF_OK;
}

int inf_dist_peer_rails(inf_dist *d, uint32_t peer, inf_peer_rails *out, inf_err *err) {
    if (peer >= INF_MAX_PEERS) {
        return inf_dist_error(err, INF_EINVAL, (int32_t)peer, "no peer %u", peer);
    }
    *out = (inf_peer_rails){0};
    const inf_peer *p = &d->peers[peer];
    pthread_mutex_lock(&d->lock);
    for (uint32_t k = 0; k < INF_MAX_RAILS; k++) {
        out->out |= (p->out[k] != NULL ? 1u : 0u) << k;
        out->in |= (p->in[k] != NULL ? 1u : 0u) << k;
        out->puts |= (p->out[k] != NULL && atomic_load(&p->out[k]->puts) ? 1u : 0u) << k;
    }
    pthread_mutex_unlock(&d->lock);
    read_note(d, out);
    return INF_OK;
}
