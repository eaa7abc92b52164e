/* What a transport provider implements. link.c holds the public functions, their checks and the
 * sleeping; a provider moves the bytes. */
#ifndef INF_TRANSPORT_LINK_IMPL_H
#define INF_TRANSPORT_LINK_IMPL_H

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <time.h>

#include "infinite/link.h"

enum {
    INF_LINK_FDS = 2, /* descriptors one link may sleep on */
    INF_LINK_MIN_SLOTS = 2,
    INF_LINK_MAX_SLOTS = 64,
};

#define INF_LINK_MAX_SLOT_BYTES (UINT64_C(1) << 30)

/* Puts, where a provider has them. Arguments are checked as far as link.h says, not against the
 * region.
 */
typedef struct inf_put_ops {
    int (*use_region)(inf_link *link, inf_region *region);
    int (*grant)(inf_link *link, uint64_t offset, uint64_t bytes, inf_grant *out);
    int (*revoke)(inf_link *link, uint32_t id);
    int (*put)(inf_link *link, const inf_put *puts, uint32_t n);
    void (*limit)(inf_link *link, uint64_t bytes);
    uint64_t (*pending)(inf_link *link);
} inf_put_ops;

/* Each function is called on a living link only, except close. A provider reports an error through
 * inf_link_fail and returns its code; link.c then answers every later call itself. */
typedef struct inf_link_ops {
    int (*prepare)(inf_link *link, void **buf);
    int (*post)(inf_link *link, uint64_t len); /* len <= slot_bytes, a slot is prepared */
    int (*poll)(inf_link *link, const void **msg, uint64_t *len);
    void (*release)(inf_link *link); /* a polled message is there */
    /* Moves what can be moved without blocking; true if the caller of wait has something to do. */
    bool (*ready)(inf_link *link);
    /* Announces that this end is about to sleep and fills fds with what to sleep on, fd -1 where
     * unused. True: do not sleep, there is something to do already. */
    bool (*arm)(inf_link *link, struct pollfd fds[INF_LINK_FDS]);
    /* Ends what arm began; revents are 0 if no sleep took place. */
    void (*disarm)(inf_link *link, const struct pollfd fds[INF_LINK_FDS]);
    /* Frees the provider's memory, the link included. The descriptors are link.c's to close. */
    void (*close)(inf_link *link);
    const inf_put_ops *puts; /* NULL: it has none */
    /* Where an end's note lies, INF_LINK_TOLD bytes and before them a word that is 1 when they are
     * told; NULL: no memory is shared. */
    uint8_t *(*note)(const inf_link *link, bool own);
    /* The index-th slot; NULL: messages lie in no slots. */
    uint8_t *(*slot)(const inf_link *link, uint32_t index);
    /* Does the peer hold every slot? NULL: always, when prepare finds no room. */
    bool (*full)(const inf_link *link);
} inf_link_ops;

/* The head of every provider's own structure. */
struct inf_link {
    const inf_link_ops *ops;
    inf_link_config config;
    inf_err err;      /* code 0 while the link lives */
    void *prepared;   /* the slot that the caller is filling, NULL if none */
    uint32_t held;    /* messages polled and not released */
    const void *kept; /* of them the one that was put back, NULL if none */
    uint64_t kept_len;
    bool wants_room; /* the last prepare found no slot */
    bool many_cpus;  /* spinning can pay */
};

/* For what takes milliseconds or more: a tick's precision, and no call of the kernel. */
static inline uint64_t inf_link_now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Kills the link: records the reason, unless one is recorded already, and returns the recorded
 * code. */
int inf_link_fail(inf_link *link, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The peer is gone; what says how that showed. */
int inf_link_fail_peer(inf_link *link, const char *what);

/* Fills err (may be NULL) for a call that has no link yet; returns code. */
int inf_link_error(inf_err *err, int32_t peer, int code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* The providers' open: config is checked. They leave ops set and config copied; on failure they
 * have freed what they allocated and closed nothing. */
int inf_link_open_shm(const inf_link_config *config, inf_link **out, inf_err *err);
int inf_link_open_tcp(const inf_link_config *config, inf_link **out, inf_err *err);
/* Likewise, from an endpoint that it takes, also when it fails. */
struct inf_verbs_endpoint;
int inf_link_attach_verbs(const inf_link_config *config, struct inf_verbs_endpoint *endpoint,
                          inf_link **out, inf_err *err);

#endif
