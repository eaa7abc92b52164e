/* Devices: one context per device and process, one protection domain per trust domain in it, both
 * counted; and per context a thread that takes its asynchronous events.
 *
 * The thread only decides which endpoints an event ends: it notes the event in each and sets its
 * queue pair to ERR. The flushed receive requests then wake whoever sleeps on that link. An event
 * is acknowledged before any lock is taken: destroying a queue pair waits for the acknowledgement
 * of its events, and the one who destroys may hold locks. So between the two the queue pair may go,
 * and its endpoint is looked up by its cookie.
 *
 *   port down, LID or keys changed      all endpoints on that port
 *   GID table changed                   those whose GID is not at its index any more
 *   fatal error of a queue pair or CQ   that one
 *   fatal error of the device           all, and the context is not given out again
 *
 * Ports and addresses that come back concern nobody here: a dead link stays dead, and the next one
 * looks at the device anew. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "transport/verbs/verbs_impl.h"

static pthread_mutex_t registry = PTHREAD_MUTEX_INITIALIZER; /* guards the lists and all counts */
static inf_verbs_context *contexts;
static inf_verbs_device *devices;

/* What of an event is valid after it was acknowledged. */
typedef struct {
    enum ibv_event_type type;
    uint64_t cookie; /* of the endpoint, 0: the event is not of one */
    int port;
} event;

static event read_event(const struct ibv_async_event *e) {
    event out = {.type = e->event_type};
    switch (e->event_type) {
    case IBV_EVENT_CQ_ERR:
        out.cookie = (uint64_t)(uintptr_t)e->element.cq->cq_context;
        break;
    case IBV_EVENT_QP_FATAL:
    case IBV_EVENT_QP_REQ_ERR:
    case IBV_EVENT_QP_ACCESS_ERR:
    case IBV_EVENT_PATH_MIG_ERR:
        out.cookie = (uint64_t)(uintptr_t)e->element.qp->qp_context;
        break;
    case IBV_EVENT_PORT_ERR:
    case IBV_EVENT_LID_CHANGE:
    case IBV_EVENT_PKEY_CHANGE:
    case IBV_EVENT_GID_CHANGE:
        out.port = e->element.port_num;
        break;
    default:
        break;
    }
    return out;
}

static bool lost_gid(const inf_verbs_context *c, const inf_verbs_endpoint *ep) {
    union ibv_gid gid;
    return c->lib->query_gid(c->ibv, (uint8_t)ep->config.port, (int)ep->gid_index, &gid) != 0 ||
           memcmp(gid.raw, ep->local.gid, sizeof gid.raw) != 0;
}

static bool concerns(const inf_verbs_context *c, const inf_verbs_endpoint *ep, const event *e) {
    if (e->cookie != 0)
        return ep->cookie == e->cookie;
    if (e->type == IBV_EVENT_DEVICE_FATAL)
        return true;
    if (e->port == 0 || (uint32_t)e->port != ep->config.port)
        return false;
    switch (e->type) {
    case IBV_EVENT_GID_CHANGE:
        return lost_gid(c, ep);
    case IBV_EVENT_PKEY_CHANGE:
    case IBV_EVENT_LID_CHANGE:
        return ep->link_layer == INF_VERBS_INFINIBAND;
    default:
        return true;
    }
}

static void handle(inf_verbs_context *c, const event *e) {
    struct ibv_qp_attr to_err = {.qp_state = IBV_QPS_ERR};
    pthread_mutex_lock(&c->lock);
    if (e->type == IBV_EVENT_DEVICE_FATAL)
        c->fatal = true;
    for (inf_verbs_endpoint *ep = c->endpoints; ep; ep = ep->next) {
        int none = 0;
        if (concerns(c, ep, e) &&
            atomic_compare_exchange_strong(&ep->event, &none, 1 + (int)e->type))
            ep->lib->modify_qp(ep->qp, &to_err, IBV_QP_STATE);
    }
    pthread_mutex_unlock(&c->lock);
}

static void *async_main(void *arg) {
    inf_verbs_context *c = arg;
    struct pollfd fds[2] = {{.fd = c->ibv->async_fd, .events = POLLIN},
                            {.fd = c->stop_fd, .events = POLLIN}};
    for (;;) {
        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            return NULL;
        if (fds[1].revents)
            return NULL;
        struct ibv_async_event raw;
        while (c->lib->get_async_event(c->ibv, &raw) == 0) {
            event e = read_event(&raw);
            c->lib->ack_async_event(&raw);
            handle(c, &e);
        }
        if (fds[0].revents & (POLLERR | POLLNVAL))
            fds[0].fd = -1; /* the device was taken away; the event that says so came before */
    }
}

/* Without signals: they are the host program's, and a thread it does not know would get them. */
static int start_thread(inf_verbs_context *c) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&c->thread, NULL, async_main, c);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc;
}

static void free_context(inf_verbs_context *c) {
    if (c->ibv)
        c->lib->close_device(c->ibv);
    if (c->stop_fd >= 0)
        close(c->stop_fd);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

static struct ibv_context *open_by_name(const inf_verbs_lib *lib, const char *name) {
    int n = 0;
    struct ibv_context *ibv = NULL;
    struct ibv_device **list = lib->get_device_list(&n);
    if (list || errno == ENOSYS) /* a kernel without RDMA has no device of that name either */
        errno = ENODEV;
    for (int i = 0; i < n && list; i++)
        if (strcmp(lib->get_device_name(list[i]), name) == 0) {
            errno = EIO; /* in case the driver sets nothing */
            ibv = lib->open_device(list[i]);
            break;
        }
    int reason = errno;
    if (list)
        lib->free_device_list(list);
    errno = reason;
    return ibv;
}

/* Opens the device. The registry is locked. NULL: err says why. */
static inf_verbs_context *new_context(const inf_verbs_lib *lib, const char *name, inf_err *err) {
    inf_verbs_context *c = calloc(1, sizeof *c);
    if (!c) {
        inf_link_error(err, -1, INF_ENOMEM, "cannot open RDMA device %s: no memory", name);
        return NULL;
    }
    pthread_mutex_init(&c->lock, NULL);
    c->lib = lib;
    snprintf(c->name, sizeof c->name, "%s", name);
    c->stop_fd = eventfd(0, EFD_CLOEXEC);
    c->ibv = open_by_name(lib, name);
    int reason = c->ibv ? 0 : errno;
    if (reason == 0)
        reason = lib->query_device(c->ibv, &c->attr);
    if (reason == 0 && (c->stop_fd < 0 || fcntl(c->ibv->async_fd, F_SETFL, O_NONBLOCK) < 0))
        reason = errno;
    if (reason == 0)
        reason = start_thread(c);
    if (reason != 0) {
        free_context(c);
        inf_link_error(err, -1, reason == ENODEV ? INF_EINVAL : INF_EIO,
                       "cannot open RDMA device %s: %s", name, strerror(reason));
        return NULL;
    }
    c->next = contexts;
    contexts = c;
    return c;
}

/* The registry is locked. */
static void put_context(inf_verbs_context *c) {
    if (c->devices > 0)
        return;
    for (inf_verbs_context **at = &contexts; *at; at = &(*at)->next)
        if (*at == c) {
            *at = c->next;
            break;
        }
    uint64_t one = 1;
    ssize_t n = write(c->stop_fd, &one, sizeof one);
    (void)n; /* its counter was 0 */
    pthread_join(c->thread, NULL);
    free_context(c);
}

static bool is_fatal(inf_verbs_context *c) {
    pthread_mutex_lock(&c->lock);
    bool fatal = c->fatal;
    pthread_mutex_unlock(&c->lock);
    return fatal;
}

static inf_verbs_device *new_device(inf_verbs_context *c, const char *domain, inf_err *err) {
    inf_verbs_device *d = calloc(1, sizeof *d);
    if (!d) {
        inf_link_error(err, -1, INF_ENOMEM, "cannot open RDMA device %s: no memory", c->name);
        return NULL;
    }
    d->pd = c->lib->alloc_pd(c->ibv);
    if (!d->pd) {
        inf_link_error(err, -1, INF_EIO, "cannot make a protection domain on %s: %s", c->name,
                       strerror(errno));
        free(d);
        return NULL;
    }
    d->context = c;
    snprintf(d->domain, sizeof d->domain, "%s", domain);
    c->devices++;
    d->next = devices;
    devices = d;
    return d;
}

static inf_verbs_device *find_or_open(const inf_verbs_lib *lib, const char *name,
                                      const char *domain, inf_err *err) {
    for (inf_verbs_device *d = devices; d; d = d->next)
        if (strcmp(d->context->name, name) == 0 && strcmp(d->domain, domain) == 0 &&
            !is_fatal(d->context))
            return d;
    inf_verbs_context *c = contexts;
    while (c && (strcmp(c->name, name) != 0 || is_fatal(c)))
        c = c->next;
    if (!c)
        c = new_context(lib, name, err);
    inf_verbs_device *d = c ? new_device(c, domain, err) : NULL;
    if (c && !d)
        put_context(c);
    return d;
}

int inf_verbs_device_open(const char *name, const char *domain, inf_verbs_device **out,
                          inf_err *err) {
    if (!out || !name || !domain || !name[0] || strlen(name) >= INF_VERBS_NAME ||
        strlen(domain) >= INF_VERBS_NAME)
        return inf_link_error(err, -1, INF_EINVAL,
                              "cannot open an RDMA device: its name or its domain is missing or "
                              "longer than %d bytes",
                              INF_VERBS_NAME - 1);
    *out = NULL;
    inf_err local = {.code = INF_EIO};
    err = err ? err : &local; /* its code is the status */
    const inf_verbs_lib *lib = inf_verbs_lib_get(err);
    if (!lib)
        return INF_EUNSUPPORTED;
    pthread_mutex_lock(&registry);
    inf_verbs_device *d = find_or_open(lib, name, domain, err);
    if (d)
        d->users++;
    pthread_mutex_unlock(&registry);
    *out = d;
    return d ? INF_OK : err->code;
}

void inf_verbs_device_hold(inf_verbs_device *device) {
    pthread_mutex_lock(&registry);
    device->users++;
    pthread_mutex_unlock(&registry);
}

void inf_verbs_device_close(inf_verbs_device *device) {
    if (!device)
        return;
    pthread_mutex_lock(&registry);
    if (--device->users == 0) {
        for (inf_verbs_device **at = &devices; *at; at = &(*at)->next)
            if (*at == device) {
                *at = device->next;
                break;
            }
        inf_verbs_context *c = device->context;
        c->lib->dealloc_pd(device->pd);
        free(device);
        c->devices--;
        put_context(c);
    }
    pthread_mutex_unlock(&registry);
}

void inf_verbs_list_endpoint(inf_verbs_endpoint *ep) {
    inf_verbs_context *c = ep->device->context;
    pthread_mutex_lock(&c->lock);
    ep->next = c->endpoints;
    if (ep->next)
        ep->next->prev = ep;
    c->endpoints = ep;
    if (c->fatal)
        atomic_store(&ep->event, 1 + (int)IBV_EVENT_DEVICE_FATAL);
    pthread_mutex_unlock(&c->lock);
}

void inf_verbs_unlist_endpoint(inf_verbs_endpoint *ep) {
    inf_verbs_context *c = ep->device->context;
    pthread_mutex_lock(&c->lock);
    if (ep->prev)
        ep->prev->next = ep->next;
    else
        c->endpoints = ep->next;
    if (ep->next)
        ep->next->prev = ep->prev;
    ep->prev = ep->next = NULL;
    pthread_mutex_unlock(&c->lock);
}
