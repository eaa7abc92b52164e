/* Marks: empty functions that dist calls where a message changes hands, so that `infinite trace`
 * can put uprobes on them.
 *
 * A call with its arguments in registers is all that they cost while nobody traces; a breakpoint
 * does the rest. So they keep their names and are never inlined, folded into each other or left
 * out, and take no more than six integers, which is what the calling conventions of x86-64 and
 * aarch64 pass in registers. engine/trace has the same list.
 *
 *   home:      posted -> wire                               back -> merged
 *   creditor:                  arrived -> computed -> returned
 *
 * posted is before the link gets the message and wire after it took it. back is when the home finds
 * the answer, after its own partials: it may have come before. On a GPU merged is when the merge
 * was queued. */
#ifndef INF_DIST_MARKS_H
#define INF_DIST_MARKS_H

#include <stdint.h>

/* peer is the caller's index of the other end; lane, step_id and part name the message at both
 * ends: part is the layer, and which half of the step's rows it is of (inf_wire_part, wire.h). */
#define INF_MARK_QUERY(stage)                                                                      \
    int inf_mark_query_##stage(uint64_t peer, uint64_t lane, uint64_t step_id, uint64_t part,      \
                               uint64_t rows, uint64_t bytes)
INF_MARK_QUERY(posted);
INF_MARK_QUERY(wire);
INF_MARK_QUERY(arrived);
INF_MARK_QUERY(computed);
INF_MARK_QUERY(returned);
INF_MARK_QUERY(back);
INF_MARK_QUERY(merged);

/* A piece of a move, named by lane, ticket and first: n blocks from index first on. Where bytes are
 * put, posted is before the creditor is asked for room, and wire when all has been put and said;
 * in messages both are of the one that has the blocks. computed is when they can be read in the
 * creditor's pool; nothing is merged. */
#define INF_MARK_MOVE(stage)                                                                       \
    int inf_mark_move_##stage(uint64_t peer, uint64_t lane, uint64_t ticket, uint64_t first,       \
                              uint64_t n, uint64_t bytes)
INF_MARK_MOVE(posted);
INF_MARK_MOVE(wire);
INF_MARK_MOVE(arrived);
INF_MARK_MOVE(computed);
INF_MARK_MOVE(returned);
INF_MARK_MOVE(back);

/* A step with remote spans: its beginning, each of its requests that has such spans, by the tag of
 * its inf_step_seq, and its end. The positions are the first of this step's rows and the first that
 * lies in local blocks. */
int inf_mark_step_begun(uint64_t step_id, uint64_t n_seqs, uint64_t n_tokens, uint64_t n_peers);
int inf_mark_step_seq(uint64_t step_id, uint64_t tag, uint64_t slot, uint64_t pos0,
                      uint64_t n_tokens, uint64_t local_pos0);
int inf_mark_step_ended(uint64_t step_id);

#endif
