/* Peers: how they come, go and die, and whose links the query server has. */
#include "dist/internal.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>

static const char *reason(int32_t status) {
    switch (status) {
    case INF_EPROTO:
        return "it broke the protocol";
    case INF_ETIMEOUT:
        return "it did not answer in time";
    case INF_EINVAL:
        return "it asked for more than this device takes";
    case INF_ENOMEM:
        return "this device cannot serve it";
    case INF_EIO:
        return "this device failed";
    default:
        return "a link to it is over";
    }
}

/* In words, for peer_status. */
static void say_why(inf_dist *d, uint32_t peer, int32_t status, const inf_link *link) {
    inf_peer *p = &d->peers[peer];
    inf_err err = {0};
    char said[sizeof p->why] = "";
    if (link != NULL && inf_link_status(link, &err) != INF_OK) {
        memcpy(p->why, err.message, sizeof p->why);
        return;
    }
    if (status == INF_EIO || status == INF_ENOMEM) {
        inf_lane_said(d, said, sizeof said);
    }
    snprintf(p->why, sizeof p->why, "peer %u: %s%s%s", peer, reason(status),
             said[0] != 0 ? ": " : "", said);
}

void inf_peer_fail(inf_dist *d, uint32_t peer, int32_t status, const inf_link *link) {
    inf_peer *p = &d->peers[peer];
    if (!atomic_exchange(&p->dying, true)) {
        say_why(d, peer, status, link);
        atomic_store(&p->dead, status); /* why is there before it */
        atomic_fetch_add(&d->refused, status == INF_EPROTO ? 1 : 0);
        inf_dist_wake(d->server.wake);
        inf_dist_wake(d->lander.wake);
        inf_dist_wake(d->mover.wake);
        inf_dist_wake(d->step_wake);
    }
}

/* Lists the living; those of the dead are taken from their peers. dist.lock is held. */
static uint32_t list(inf_dist *d, inf_link **links, uint32_t *ids, inf_link **over,
                     uint32_t *n_over) {
    uint32_t n = 0;
    *n_over = 0;
    for (uint32_t i = 0; i < INF_MAX_PEERS; i++) {
        inf_peer *p = &d->peers[i];
        if (p->squery != NULL && atomic_load(&p->dead) != INF_OK) {
            over[(*n_over)++] = p->squery;
            p->squery = NULL;
        } else if (p->squery != NULL) {
            links[n] = p->squery;
            ids[n++] = i;
        }
    }
    return n;
}

uint32_t inf_server_round(inf_dist *d, inf_link **links, uint32_t *ids) {
    inf_link *over[INF_MAX_PEERS];
    uint32_t n_over;
    pthread_mutex_lock(&d->lock);
    uint32_t n = list(d, links, ids, over, &n_over);
    while (n_over > 0) { /* until the round begins a detach waits */
        pthread_mutex_unlock(&d->lock);
        while (n_over-- > 0) {
            inf_query_link_close(d, over[n_over]);
        }
        pthread_mutex_lock(&d->lock);
        n = list(d, links, ids, over, &n_over); /* some may have left since */
    }
    d->server.round++;
    pthread_cond_broadcast(&d->changed);
    pthread_mutex_unlock(&d->lock);
    return n;
}

/* A number that no other home's lanes have, but by chance: what a trace of several goes by. */
static uint64_t draw_lane(uint32_t peer) {
    uint64_t lane;
    return getrandom(&lane, sizeof lane, GRND_NONBLOCK) == (ssize_t)sizeof lane
               ? lane
               : (uint64_t)inf_now() ^ peer;
}

/* Gives the peer a pair of links: both lanes come together or not at all. The caller holds
 * dist.lock; on failure the links are still its own. */
static int take_links(inf_dist *d, uint32_t peer, bool client, inf_link *query,
                      const inf_move_link *move, const char **why) {
    inf_peer *p = &d->peers[peer];
    if ((client ? p->query : p->squery) != NULL || atomic_load(&p->dead) != INF_OK ||
        atomic_load(&p->leaving)) {
        *why = "the peer has links already; detach it first";
        return INF_EINVAL;
    }
    *why = "no memory for a peer, or too many rails";
    p->lane = client ? draw_lane(peer) : p->lane;
    int status = inf_rail_add(d, peer, 0, client, move);
    if (status == INF_OK) {
        *(client ? &p->query : &p->squery) = query;
    }
    return status;
}

static int add_links(inf_dist *d, uint32_t peer, bool client, inf_link *query, inf_link *move,
                     inf_err *err) {
    const char *why = "", *of = "";
    inf_err fault;
    int status = INF_EINVAL;
    if (query == NULL || move == NULL || peer >= INF_MAX_PEERS) {
        why = "a peer needs an index below 256 and both lanes";
    } else if (inf_link_slot_bytes(query) < d->query_bytes ||
               inf_link_slot_bytes(move) < d->move_bytes) {
        why = "the links' slots are smaller than this device's messages";
    } else if ((status = inf_dist_fault(d, &fault)) != INF_OK) {
        of = "cannot take a peer, this device failed: ";
        why = fault.message;
    } else { /* whatever may wait for the device is done before the lock is taken */
        inf_slots_pin(d, query);
        inf_move_link m = inf_rail_prepare(d, client, move);
        pthread_mutex_lock(&d->lock);
        status = take_links(d, peer, client, query, &m, &why);
        pthread_mutex_unlock(&d->lock);
    }
    if (status != INF_OK) {
        inf_query_link_close(d, query);
        inf_link_close(move);
        return inf_dist_error(err, status, (int32_t)peer, "%s%s", of, why);
    }
    inf_dist_wake(client ? d->mover.wake : d->server.wake);
    inf_dist_wake(client ? d->mover.wake : d->lander.wake);
    return INF_OK;
}

int inf_dist_peer_attach(inf_dist *d, uint32_t peer, inf_link *query, inf_link *move,
                         inf_err *err) {
    return add_links(d, peer, true, query, move, err);
}

int inf_dist_peer_serve(inf_dist *d, uint32_t peer, inf_link *query, inf_link *move, inf_err *err) {
    return add_links(d, peer, false, query, move, err);
}

/* Waits until every thread that could use the peer's links has let go of them. dist.lock is held.
 */
static void wait_for_release(inf_dist *d, inf_peer *p) {
    inf_worker *workers[] = {&d->server, &d->lander, &d->mover};
    uint64_t rounds[3];
    for (int i = 0; i < 3; i++) {
        rounds[i] = workers[i]->round;
        inf_dist_wake(workers[i]->wake);
    }
    inf_dist_wake(d->step_wake);
    for (int i = 0; i < 3; i++) {
        while (workers[i]->round == rounds[i]) {
            pthread_cond_wait(&d->changed, &d->lock);
        }
    }
    while (p->in_step) {
        pthread_cond_wait(&d->changed, &d->lock);
    }
}

int inf_dist_peer_detach(inf_dist *d, uint32_t peer, inf_err *err) {
    if (peer >= INF_MAX_PEERS) {
        return inf_dist_error(err, INF_EINVAL, (int32_t)peer, "no peer %u", peer);
    }
    inf_peer *p = &d->peers[peer];
    pthread_mutex_lock(&d->lock);
    while (atomic_load(&p->leaving)) { /* another caller's detach */
        pthread_cond_wait(&d->changed, &d->lock);
    }
    atomic_store(&p->leaving, true);
    inf_peer_fail(d, peer, INF_EPEER, NULL);
    inf_link *squery = p->squery;
    inf_rail *rails[2 * INF_MAX_RAILS];
    p->squery = NULL;
    inf_rails_take(d, p, rails);
    wait_for_release(d, p);
    inf_link *query = p->query; /* the mover may have closed it */
    p->query = NULL;
    pthread_mutex_unlock(&d->lock); /* a close may take a while; nobody else has any of these */
    for (int i = 0; i < 2 * INF_MAX_RAILS; i++) {
        inf_rail_close(d, rails[i]);
    }
    inf_query_link_close(d, squery);
    inf_query_link_close(d, query);
    pthread_mutex_lock(&d->lock);
    inf_moves_fail(d, p, INF_EPEER); /* nothing reads their blocks any more */
    atomic_store(&p->dead, INF_OK);
    atomic_store(&p->dying, false);
    atomic_store(&p->leaving, false);
    pthread_cond_broadcast(&d->changed);
    pthread_mutex_unlock(&d->lock);
    return INF_OK;
}

int inf_dist_peer_status(inf_dist *d, uint32_t peer, inf_err *err) {
    if (peer >= INF_MAX_PEERS) {
        return inf_dist_error(err, INF_EINVAL, (int32_t)peer, "no peer %u", peer);
    }
    inf_peer *p = &d->peers[peer];
    pthread_mutex_lock(&d->lock);
    bool linked = p->query != NULL || p->squery != NULL;
    int32_t dead = atomic_load(&p->dead);
    char why[sizeof p->why] = "";
    if (dead != INF_OK) {
        memcpy(why, p->why, sizeof why);
    }
    pthread_mutex_unlock(&d->lock);
    if (dead != INF_OK) {
        return inf_dist_error(err, dead, (int32_t)peer, "%s", why);
    }
    return linked ? INF_OK
                  : inf_dist_error(err, INF_EPEER, (int32_t)peer, "peer %u has no links", peer);
}
