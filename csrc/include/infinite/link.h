/* Door 2: links, the transport between instances.
 *
 * A link is one directed lane between two instances. Its client end sends requests, its server end
 * answers each one; both ends are message rings of a few slots, registered once at open. Two links
 * run from every debtor to every creditor: the query lane (queries out, partial results back) and
 * the move lane (KV blocks out, acknowledgements back), so that a bulk move never stands in front
 * of a query.
 *
 *   client: prepare -> fill the slot in place -> post            poll -> read the reply -> release
 *   server: poll -> read the request -> release                  prepare -> fill -> post
 *
 * Ownership:
 *  1. inf_link_open takes the descriptors in its config, also when it fails; inf_link_close closes
 *     them. Nobody else reads, writes or closes them after the call.
 *  2. The buffer from prepare belongs to the caller until post (or close).
 *  3. The message from poll belongs to the caller until release (or close). Messages are released
 * in the order in which they were polled. Its bytes come from the peer: nothing in them is trusted.
 *  4. One end of a link is used by one thread at a time.
 *  5. After a status < 0 the link is dead: every later call returns the same status; close it.
 */
#ifndef INFINITE_LINK_H
#define INFINITE_LINK_H

#include "infinite/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct inf_link inf_link;

enum { INF_LINK_CLIENT = 1, INF_LINK_SERVER = 2 };
enum { INF_PROVIDER_SHM = 1, INF_PROVIDER_TCP = 2, INF_PROVIDER_VERBS = 3 };

/* What both ends must agree on is exchanged by the caller before open (see rdma/). */
typedef struct inf_link_config {
    uint32_t role;       /* INF_LINK_CLIENT | INF_LINK_SERVER */
    uint32_t provider;   /* INF_PROVIDER_* */
    uint32_t slots;      /* slots of each direction's ring, 2..64 */
    int32_t peer;        /* peer index, for error records */
    uint64_t slot_bytes; /* largest message, multiple of 64, at most 1 GiB */
    int32_t sock_fd;     /* tcp: the connection; else a connected stream socket that shows death */
    int32_t mem_fd;      /* shm: memory of inf_link_shm_bytes() bytes, shared; else -1 */
    int32_t rx_event_fd; /* shm: eventfd this end sleeps on; else -1 */
    int32_t tx_event_fd; /* shm: eventfd that wakes the peer; else -1 */
} inf_link_config;

_Static_assert(sizeof(inf_link_config) == 40, "inf_link_config is mirrored in Go");

/* Bytes of the shared memory that an shm link of this shape needs, 0 if the shape is not allowed.
 */
uint64_t inf_link_shm_bytes(uint32_t slots, uint64_t slot_bytes);

/* Of provider verbs: see inf_link_open_verbs in verbs.h. */
int inf_link_open(const inf_link_config *config, inf_link **out, inf_err *err);

/* A free slot of slot_bytes bytes to write the next message into, INF_AGAIN when all are in flight.
 */
int inf_link_prepare(inf_link *link, void **buf);

/* After prepare said INF_AGAIN: 1 if the peer holds every slot, and nobody else can change that; 0
 * if there will be room as soon as messages that are under way are known to have arrived. */
int inf_link_full(const inf_link *link);

/* Sends the first len bytes of the slot that prepare gave. Never blocks: what cannot leave now
 * leaves during later calls of poll or wait. */
int inf_link_post(inf_link *link, uint64_t len);

/* The oldest arrived message that was not polled yet, INF_AGAIN when there is none. */
int inf_link_poll(inf_link *link, const void **msg, uint64_t *len);

/* Puts the last polled message, which was not released, back: the next poll gives it again. A wait
 * does not return for it, but for what it is kept for: room for an answer, or another link. */
void inf_link_keep(inf_link *link, const void *msg, uint64_t len);

/* Gives the oldest polled message's slot back to the peer. */
void inf_link_release(inf_link *link);

enum { INF_LINK_WAIT_MAX = 512 }; /* links of one wait */

/* Sleeps until one of the links has something to poll, room to prepare after it had none, is dead,
 * wake_fd (-1: none) is readable, or timeout_ns has passed. Spins briefly first. INF_OK or
 * INF_AGAIN at the time limit. Progress of posted messages goes on meanwhile. */
int inf_link_wait(inf_link *const *links, uint32_t n, int wake_fd, int64_t timeout_ns);
/* The same, spinning for spin_ns if that is longer, and before it looks at wake_fd: for a thread
 * that has a CPU to itself and is asked again soon. A wake-up costs both ends some microseconds.
 * If it turns out to have no CPU to itself it sleeps after all, now and for a while. */
int inf_link_wait_awake(inf_link *const *links, uint32_t n, int wake_fd, int64_t timeout_ns,
                        int64_t spin_ns);

/* The peer index of the config. */
int32_t inf_link_peer(const inf_link *link);
uint64_t inf_link_slot_bytes(const inf_link *link);
uint32_t inf_link_slots(const inf_link *link); /* of each direction */

/* Where this end's slots lie: at gets the address of the index-th, whichever way its messages go,
 * and it is slot_bytes long. 0: there are no more, or messages of this provider lie in no memory of
 * the kind: what a slot holds is the peer's while messages are the peer's, and the memory stays
 * where it is until the link is closed. Slots of one way follow each other by their addresses. */
int inf_link_slot(const inf_link *link, uint32_t index, void **at);

enum { INF_LINK_TOLD = 256 };

/* What this end has to say of itself, once, at most INF_LINK_TOLD bytes: the other end has it with
 * the next message, and keeps it. Only on links whose ends share memory; INF_EUNSUPPORTED on
 * others. INF_EFULL: it was said already. */
int inf_link_tell(inf_link *link, const void *note, uint64_t bytes);
/* What the other end has told; bytes beyond what it told are 0. INF_AGAIN: nothing so far. Like a
 * message it is the peer's word. */
int inf_link_told(const inf_link *link, void *note, uint64_t bytes);

/* Fills err with the reason for which the link is dead; returns its status, INF_OK while it lives.
 */
int inf_link_status(const inf_link *link, inf_err *err);

/* Closes this end; the peer's next call says INF_EPEER. Safe on NULL. */
void inf_link_close(inf_link *link);

/* --- puts: bytes past the ring, where the provider can ---
 *
 * Large data moves without a copy on either side: the receiver grants stretches of its memory to
 * its peer and tells it of them in a message; the peer puts bytes of its own memory straight there,
 * and then sends a message that says so.
 *
 *   receiver: grant -> post (grants) ... poll (landed) -> revoke -> region_flush -> read
 *
 *   sender: poll (grants) -> put ... -> post (landed)
 *
 * Rules:
 *  1. Both ends name the region, which they have registered before (inf_region_open in verbs.h),
 * once, before the first grant or put, and close it after the link.
 *  2. A message posted after a put arrives after its bytes. A put alone tells the receiver nothing.
 *  3. The source of a put does not change while inf_link_put_pending counts it; on a dead link,
 * until it is closed.
 *  4. Granted memory is the peer's to write until inf_link_revoke has returned INF_OK, or the link
 * is closed: before that nobody reads it, and it is not used for anything else. What is in it then
 * is the peer's word, as in a message.
 *  5. A put into what is not granted (any more) ends the link. So the receiver revokes once the
 * sender has said that it is done or gives up, or it closes the link.
 *  6. These calls belong to the thread that has that end of the link.
 *
 * On links that cannot they say INF_EUNSUPPORTED; such data travels in messages. */
typedef struct inf_region inf_region;

enum { INF_PUT_MAX = 64 }; /* stretches of one call */

/* What the peer may write. It travels as it lies in memory, little-endian. */
typedef struct inf_grant {
    uint64_t address;
    uint64_t bytes;
    uint32_t key;
    uint32_t id; /* for inf_link_revoke; of no meaning to the peer */
} inf_grant;

/* A stretch to put. */
typedef struct inf_put {
    uint64_t offset; /* in the region of this end */
    uint64_t remote; /* within a grant of the peer */
    uint32_t key;    /* the grant's */
    uint32_t bytes;  /* 1..8 Mi */
} inf_put;

_Static_assert(sizeof(inf_grant) == 24 && sizeof(inf_put) == 24, "inf_grant is sent as it lies");

/* Names the region. INF_OK on every link of its device whose ends can put; INF_EUNSUPPORTED, and
 * nothing changes, where puts are not possible: the provider, the device, or the way in which the
 * region is registered cannot do it. */
int inf_link_use_region(inf_link *link, inf_region *region);

/* Lets the peer write bytes at offset of the region. INF_AGAIN: ask again after a wait. INF_EFULL:
 * too many grants. */
int inf_link_grant(inf_link *link, uint64_t offset, uint64_t bytes, inf_grant *out);

/* Ends a grant. INF_AGAIN until it is over: ask again, after a wait if need be. */
int inf_link_revoke(inf_link *link, uint32_t id);

/* Puts n stretches, all or none. INF_AGAIN when that is more than may be in flight now: ask again
 * after a wait. Stretches that follow each other at the peer under one key travel as one. */
int inf_link_put(inf_link *link, const inf_put *puts, uint32_t n);

/* Bounds the bytes in flight, and so the share of the wire that puts take from messages: with a
 * round trip of 10 us, 64 KiB are at most 52 Gbit/s. A larger single call goes when nothing else is
 * in flight. May be changed at any time, as from step to idle. Default: 1 MiB. */
int inf_link_put_limit(inf_link *link, uint64_t bytes);

/* Bytes whose source must not change yet. While there are any, a wait returns when they are fewer.
 */
uint64_t inf_link_put_pending(inf_link *link);

#ifdef __cplusplus
}
#endif
#endif
