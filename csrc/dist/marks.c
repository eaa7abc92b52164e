#include "dist/marks.h"

/* noipa keeps a compiler from looking through the call, and from folding what looks alike; clang
 * has no such attribute, but this file is a unit of its own. The results differ so that a linker
 * does not fold the bodies either. */
#if defined(__has_attribute)
#if __has_attribute(noipa)
#define MARK __attribute__((noipa, noinline, used, visibility("default")))
#endif
#endif
#ifndef MARK
#define MARK __attribute__((noinline, used, visibility("default")))
#endif

/* Wants its arguments, and begins the function with an instruction that the kernel need not
 * single-step for a uprobe. */
#define TAKE(...) __asm__ volatile("nop" : : __VA_ARGS__)

#define QUERY(stage, number)                                                                       \
    MARK INF_MARK_QUERY(stage) {                                                                   \
        TAKE("r"(peer), "r"(lane), "r"(step_id), "r"(part), "r"(rows), "r"(bytes));                \
        return number;                                                                             \
    }
QUERY(posted, 1)
QUERY(wire, 2)
QUERY(arrived, 3)
QUERY(computed, 4)
QUERY(returned, 5)
QUERY(back, 6)
QUERY(merged, 7)

#define MOVE(stage, number)                                                                        \
    MARK INF_MARK_MOVE(stage) {                                                                    \
        TAKE("r"(peer), "r"(lane), "r"(ticket), "r"(first), "r"(n), "r"(bytes));                   \
        return number;                                                                             \
    }
MOVE(posted, 8)
MOVE(wire, 9)
MOVE(arrived, 10)
MOVE(computed, 11)
MOVE(returned, 12)
MOVE(back, 13)

MARK int inf_mark_step_begun(uint64_t step_id, uint64_t n_seqs, uint64_t n_tokens,
                             uint64_t n_peers) {
    TAKE("r"(step_id), "r"(n_seqs), "r"(n_tokens), "r"(n_peers));
    return 14;
}

MARK int inf_mark_step_seq(uint64_t step_id, uint64_t tag, uint64_t slot, uint64_t pos0,
                           uint64_t n_tokens, uint64_t local_pos0) {
    TAKE("r"(step_id), "r"(tag), "r"(slot), "r"(pos0), "r"(n_tokens), "r"(local_pos0));
    return 15;
}

MARK int inf_mark_step_ended(uint64_t step_id) {
    TAKE("r"(step_id));
    return 16;
}
