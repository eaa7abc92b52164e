/* The public functions of door 2: checks, the error record, and the sleep over many links. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "infinite/verbs.h"
#include "runtime/clock.h"
#include "runtime/vigil.h"
#include "transport/link_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* A wait spins this long before it sleeps: about what a sleep and a wake-up cost. */
static const int64_t SPIN_NS = 4000;
/* Over more links than this one pass is longer than the spin. */
static const uint32_t SPIN_LINKS = 8;
/* No sleep is longer: a host that vanished makes no event, so links are looked at now and then. */
static const int64_t LOOK_NS = 500000000;

static void set_error(inf_err *err, int32_t peer, int code, const char *format, va_list args) {
    err->code = code;
    err->instance = peer;
    err->layer = -1;
    err->reserved = 0;
    vsnprintf(err->message, sizeof err->message, format, args);
}

int inf_link_error(inf_err *err, int32_t peer, int code, const char *format, ...) {
    if (err) {
        va_list args;
        va_start(args, format);
        set_error(err, peer, code, format, args);
        va_end(args);
    }
    return code;
}

int inf_link_fail(inf_link *link, int code, const char *format, ...) {
    if (link->err.code == 0) {
        va_list args;
        va_start(args, format);
        set_error(&link->err, link->config.peer, code, format, args);
        va_end(args);
    }
    return link->err.code;
}

int inf_link_fail_peer(inf_link *link, const char *what) {
    return inf_link_fail(link, INF_EPEER, "cannot reach the peer: %s", what);
}

static void close_fd(int fd) {
    if (fd >= 0)
        close(fd);
}

static void close_config(const inf_link_config *config) {
    close_fd(config->sock_fd);
    close_fd(config->mem_fd);
    close_fd(config->rx_event_fd);
    close_fd(config->tx_event_fd);
}

/* Non-blocking, because nothing here may block outside wait; close-on-exec, because a child that
 * keeps the descriptor would hide this process's death from the peer. */
static int prepare_fd(int fd) {
    if (fd < 0)
        return 0;
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return -1;
    return fcntl(fd, F_SETFD, FD_CLOEXEC);
}

static bool shape_ok(uint32_t slots, uint64_t slot_bytes) {
    return slots >= INF_LINK_MIN_SLOTS && slots <= INF_LINK_MAX_SLOTS && slot_bytes > 0 &&
           slot_bytes % 64 == 0 && slot_bytes <= INF_LINK_MAX_SLOT_BYTES;
}

static int check_config(const inf_link_config *c, bool verbs, inf_err *err) {
    if (c->role != INF_LINK_CLIENT && c->role != INF_LINK_SERVER)
        return inf_link_error(err, c->peer, INF_EINVAL, "cannot open a link: role %u", c->role);
    if (!shape_ok(c->slots, c->slot_bytes))
        return inf_link_error(err, c->peer, INF_EINVAL,
                              "cannot open a link: %u slots of %llu bytes are not allowed",
                              c->slots, (unsigned long long)c->slot_bytes);
    if (c->sock_fd < 0)
        return inf_link_error(err, c->peer, INF_EINVAL, "cannot open a link without a socket");
    if (verbs != (c->provider == INF_PROVIDER_VERBS))
        return inf_link_error(err, c->peer, INF_EINVAL,
                              "cannot open a link: an endpoint and provider verbs go together");
    bool shm = c->provider == INF_PROVIDER_SHM;
    if (shm && (c->mem_fd < 0 || c->rx_event_fd < 0 || c->tx_event_fd < 0))
        return inf_link_error(err, c->peer, INF_EINVAL,
                              "cannot open a shm link without memory and two eventfds");
    if (!shm && !verbs && c->provider != INF_PROVIDER_TCP)
        return inf_link_error(err, c->peer, INF_EUNSUPPORTED,
                              "cannot open a link: provider %u is not in this build", c->provider);
    if (prepare_fd(c->sock_fd) < 0 || prepare_fd(c->rx_event_fd) < 0 ||
        prepare_fd(c->tx_event_fd) < 0)
        return inf_link_error(err, c->peer, INF_EIO, "cannot prepare a descriptor: %s",
                              strerror(errno));
    return INF_OK;
}

static int open_provider(const inf_link_config *config, inf_verbs_endpoint *endpoint,
                         inf_link **out, inf_err *err) {
    int rc = check_config(config, endpoint != NULL, err);
    if (rc != INF_OK) {
        inf_verbs_endpoint_destroy(endpoint);
        return rc;
    }
    if (endpoint)
        return inf_link_attach_verbs(config, endpoint, out, err);
    return config->provider == INF_PROVIDER_SHM ? inf_link_open_shm(config, out, err)
                                                : inf_link_open_tcp(config, out, err);
}

static int open_link(const inf_link_config *config, inf_verbs_endpoint *endpoint, inf_link **out,
                     inf_err *err) {
    if (!config || !out) {
        inf_verbs_endpoint_destroy(endpoint);
        if (config)
            close_config(config);
        return inf_link_error(err, -1, INF_EINVAL, "cannot open a link: no config or no result");
    }
    *out = NULL;
    int rc = open_provider(config, endpoint, out, err);
    if (rc != INF_OK || !*out) {
        close_config(config);
        return rc;
    }
    cpu_set_t cpus;
    (*out)->many_cpus = sched_getaffinity(0, sizeof cpus, &cpus) == 0 && CPU_COUNT(&cpus) > 1;
    return INF_OK;
}

int inf_link_open(const inf_link_config *config, inf_link **out, inf_err *err) {
    return open_link(config, NULL, out, err);
}

int inf_link_open_verbs(const inf_link_config *config, inf_verbs_endpoint *endpoint, inf_link **out,
                        inf_err *err) {
    if (!endpoint && config) {
        close_config(config);
        return inf_link_error(err, config->peer, INF_EINVAL,
                              "cannot open a verbs link without an endpoint");
    }
    return open_link(config, endpoint, out, err);
}

int inf_link_prepare(inf_link *link, void **buf) {
    if (!link || !buf)
        return INF_EINVAL;
    if (link->err.code < 0)
        return link->err.code;
    if (!link->prepared) {
        int rc = link->ops->prepare(link, &link->prepared);
        link->wants_room = rc == INF_AGAIN;
        if (rc != INF_OK) {
            link->prepared = NULL;
            return rc;
        }
    }
    *buf = link->prepared;
    return INF_OK;
}

int inf_link_full(const inf_link *link) {
    return link && link->err.code == 0 && !link->prepared && link->wants_room &&
           (!link->ops->full || link->ops->full(link));
}

int inf_link_post(inf_link *link, uint64_t len) {
    if (!link)
        return INF_EINVAL;
    if (link->err.code < 0)
        return link->err.code;
    if (!link->prepared)
        return inf_link_fail(link, INF_EINVAL, "cannot post: no slot was prepared");
    if (len > link->config.slot_bytes)
        return inf_link_fail(link, INF_EINVAL, "cannot post %llu bytes in a slot of %llu",
                             (unsigned long long)len, (unsigned long long)link->config.slot_bytes);
    link->prepared = NULL;
    return link->ops->post(link, len);
}

int inf_link_poll(inf_link *link, const void **msg, uint64_t *len) {
    if (!link || !msg || !len)
        return INF_EINVAL;
    if (link->err.code < 0)
        return link->err.code;
    if (link->kept) {
        *msg = link->kept;
        *len = link->kept_len;
        link->kept = NULL;
        return INF_OK;
    }
    int rc = link->ops->poll(link, msg, len);
    if (rc == INF_OK)
        link->held++;
    return rc;
}

void inf_link_keep(inf_link *link, const void *msg, uint64_t len) {
    link->kept = msg;
    link->kept_len = len;
}

void inf_link_release(inf_link *link) {
    if (!link || link->err.code < 0)
        return;
    if (link->held == 0) {
        inf_link_fail(link, INF_EINVAL, "cannot release: no polled message is held");
        return;
    }
    link->held--;
    link->ops->release(link);
}

/* One pass over all links: every one makes progress, whichever is ready. */
static bool any_ready(inf_link *const *links, uint32_t n) {
    bool ready = false;
    for (uint32_t i = 0; i < n; i++)
        ready |= links[i]->err.code < 0 || links[i]->ops->ready(links[i]);
    return ready;
}

/* As briefly as pays for any thread, if the links are few. */
static bool spin(inf_link *const *links, uint32_t n, int64_t deadline) {
    int64_t now = inf_now(), end = now + SPIN_NS;
    if (n > SPIN_LINKS)
        return false;
    if (deadline >= 0 && deadline < end)
        end = deadline;
    while (now < end) {
        for (int i = 0; i < 8; i++)
            inf_cpu_relax();
        if (any_ready(links, n))
            return true;
        now = inf_now();
    }
    return false;
}

/* Links make progress when they are looked at, which takes so long at most. */
static const int64_t PASS_NS = 100000;

static bool stay_awake(inf_link *const *links, uint32_t n, int64_t deadline, int64_t ns) {
    int64_t left = deadline < 0 ? ns : deadline - inf_now();
    inf_vigil v = inf_vigil_begin(left < ns ? left : ns);
    do {
        if (any_ready(links, n))
            return true;
        inf_vigil_worked(&v, (int64_t)n * PASS_NS);
    } while (inf_vigil_goes_on(&v));
    return false;
}

/* One sleep. True: wait has something to report. status gets what to report. */
static bool sleep_once(inf_link *const *links, uint32_t n, int wake_fd, int64_t deadline,
                       int *status) {
    struct pollfd fds[INF_LINK_WAIT_MAX * INF_LINK_FDS + 1];
    uint32_t armed = 0;
    bool ready = false;
    *status = INF_OK;
    for (; armed < n && !ready; armed++) {
        struct pollfd *f = &fds[armed * INF_LINK_FDS];
        for (int i = 0; i < INF_LINK_FDS; i++)
            f[i] = (struct pollfd){.fd = -1};
        ready = links[armed]->ops->arm(links[armed], f);
    }
    struct pollfd *wake = &fds[armed * INF_LINK_FDS];
    *wake = (struct pollfd){.fd = wake_fd, .events = POLLIN};
    int polled = 0;
    if (!ready) {
        int64_t left = deadline < 0 ? LOOK_NS : deadline - inf_now();
        left = left < 0 ? 0 : left > LOOK_NS ? LOOK_NS : left;
        struct timespec limit = {0, (long)left};
        polled = ppoll(fds, armed * INF_LINK_FDS + 1, &limit, NULL);
        if (polled < 0 && errno != EINTR) {
            *status = INF_EIO;
            ready = true;
        }
    }
    if (polled <= 0)
        for (uint32_t i = 0; i <= armed * INF_LINK_FDS; i++)
            fds[i].revents = 0;
    for (uint32_t i = 0; i < armed; i++)
        links[i]->ops->disarm(links[i], &fds[i * INF_LINK_FDS]);
    if (wake->revents & POLLNVAL)
        *status = INF_EINVAL;
    return ready || wake->revents != 0;
}

int inf_link_wait(inf_link *const *links, uint32_t n, int wake_fd, int64_t timeout_ns) {
    return inf_link_wait_awake(links, n, wake_fd, timeout_ns, 0);
}

int inf_link_wait_awake(inf_link *const *links, uint32_t n, int wake_fd, int64_t timeout_ns,
                        int64_t spin_ns) {
    if (n > INF_LINK_WAIT_MAX || (n > 0 && !links))
        return INF_EINVAL;
    for (uint32_t i = 0; i < n; i++)
        if (!links[i])
            return INF_EINVAL;
    if (any_ready(links, n))
        return INF_OK;
    int64_t deadline = -1;
    if (timeout_ns >= 0) {
        int64_t now = inf_now();
        deadline = timeout_ns > INT64_MAX - now ? INT64_MAX : now + timeout_ns;
    }
    if (timeout_ns != 0 && n > 0 && links[0]->many_cpus &&
        (spin(links, n, deadline) ||
         (spin_ns > SPIN_NS && stay_awake(links, n, deadline, spin_ns))))
        return INF_OK;
    for (;;) {
        int status;
        if (sleep_once(links, n, wake_fd, deadline, &status))
            return status;
        if (any_ready(links, n))
            return INF_OK;
        if (deadline >= 0 && inf_now() >= deadline)
            return INF_AGAIN;
    }
}

int32_t inf_link_peer(const inf_link *link) { return link ? link->config.peer : -1; }

uint64_t inf_link_slot_bytes(const inf_link *link) { return link ? link->config.slot_bytes : 0; }

uint32_t inf_link_slots(const inf_link *link) { return link ? link->config.slots : 0; }

int inf_link_slot(const inf_link *link, uint32_t index, void **at) {
    *at = link && link->ops->slot ? link->ops->slot(link, index) : NULL;
    return *at != NULL;
}

int inf_link_status(const inf_link *link, inf_err *err) {
    if (!link)
        return inf_link_error(err, -1, INF_EINVAL, "no link");
    if (link->err.code < 0 && err)
        *err = link->err;
    return link->err.code;
}

void inf_link_close(inf_link *link) {
    if (!link)
        return;
    inf_link_config config = link->config;
    link->ops->close(link);
    close_config(&config);
}
