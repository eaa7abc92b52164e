/* What travels between the two ends of a verbs link.
 *
 * Every arrival is an RDMA write with 32 immediate bits:
 *
 *   31..30 kind   29..24          23..12           11..0
 *   0 message     slot            lap, mod 4096    released, mod 4096
 *   1 long        slot            lap, mod 4096    released, mod 4096
 *   2 credit      released, mod 2^30
 *   3 last word   messages sent, mod 2^30
 *
 * slot = number % slots and lap = number / slots of the message; released: how many messages of the
 * other direction the sender of this one has released since open. At most `slots` are unreleased,
 * so a remainder tells the number, and each is checked against what is possible.
 *
 * A message is one write, whose length the device reports. A long one, of more than LONG bytes
 * (which every device can write at once), is several: its payload in writes of LONG bytes and a
 * rest, then its header with the immediate. The header lies right before the payload in the slot.
 * So the bytes of an ordinary message are as many as its payload's: 16 KB are 4 packets, not 5. */
#ifndef INF_VERBS_WIRE_H
#define INF_VERBS_WIRE_H

#include <stdint.h>

enum { INF_IMM_MESSAGE = 0, INF_IMM_LONG = 1, INF_IMM_CREDIT = 2, INF_IMM_LAST = 3 };
enum { INF_IMM_LOW_MASK = 0xfff, INF_IMM_COUNT_MASK = 0x3fffffff };

#define INF_VERBS_LONG (UINT64_C(8) << 20)

typedef struct inf_verbs_header {
    uint32_t magic;
    uint32_t slot;
    uint64_t number;   /* of the message */
    uint64_t released; /* as in the immediate, in full */
    uint64_t length;
} inf_verbs_header;

#define INF_VERBS_HEADER_MAGIC 0x4c464e49u /* "INFL" */

/* Bytes before the payload in a slot. */
enum { INF_VERBS_LINE = 64 };

_Static_assert(sizeof(inf_verbs_header) == 32, "on the wire");

static inline uint32_t inf_imm_message(int kind, uint64_t number, uint32_t slots,
                                       uint64_t released) {
    return (uint32_t)kind << 30 | (uint32_t)(number % slots) << 24 |
           ((uint32_t)(number / slots) & INF_IMM_LOW_MASK) << 12 |
           ((uint32_t)released & INF_IMM_LOW_MASK);
}

static inline uint32_t inf_imm_count(int kind, uint64_t count) {
    return (uint32_t)kind << 30 | ((uint32_t)count & INF_IMM_COUNT_MASK);
}

static inline int inf_imm_kind(uint32_t imm) { return (int)(imm >> 30); }
static inline uint32_t inf_imm_slot(uint32_t imm) { return imm >> 24 & 0x3f; }
static inline uint32_t inf_imm_lap(uint32_t imm) { return imm >> 12 & INF_IMM_LOW_MASK; }
static inline uint32_t inf_imm_released(uint32_t imm) { return imm & INF_IMM_LOW_MASK; }

/* How far a counter has moved on from `before`, given its remainder. */
static inline uint32_t inf_imm_ahead(uint32_t remainder, uint64_t before, uint32_t mask) {
    return (remainder - (uint32_t)before) & mask;
}

#endif
