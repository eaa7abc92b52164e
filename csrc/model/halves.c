#include "model/halves.h"

/* The second half begins at a multiple of it: products take rows by so many at once, and on a GPU
 * they want an alignment of 256 bytes, which so many rows have. */
enum { ROWS_AT_ONCE = 16 };

/* The part of the request in rows [first, first + n) of the step, counted from first; 0: none. */
static int part_of(const inf_step_seq *seq, uint32_t first, uint32_t n, inf_step_seq *out) {
    uint32_t begin = seq->token_off > first ? seq->token_off : first;
    uint32_t end = seq->token_off + seq->n_tokens, last = first + n;
    end = end < last ? end : last;
    if (begin >= end) {
        return 0;
    }
    *out = *seq;
    out->token_off = begin - first;
    out->n_tokens = end - begin;
    out->pos0 = seq->pos0 + (begin - seq->token_off);
    return 1;
}

int inf_halves_cut(inf_halves *h, const inf_step_buffers *s) {
    uint32_t rows = s->head->n_tokens, first = 0, taken = 0;
    uint32_t n = ((rows + 1) / 2 + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE * ROWS_AT_ONCE;
    if (n >= rows) {
        return 0;
    }
    for (int32_t i = 0; i < INF_HALVES; i++) {
        inf_step_buffers *b = &h->step[i];
        h->head[i] = *s->head;
        h->head[i].n_tokens = n;
        h->head[i].n_seqs = h->head[i].n_rows = 0;
        *b = *s;
        b->head = &h->head[i];
        b->seqs = h->seqs + taken;
        b->tokens = s->tokens + first;
        for (uint32_t k = 0; k < s->head->n_seqs; k++) {
            if (part_of(&s->seqs[k], first, n, &h->seqs[taken]) == 0) {
                continue;
            }
            if (h->head[i].n_seqs++ == 0) {
                b->seq_out = s->seq_out + k; /* those that follow do so here as well */
            }
            taken++;
        }
        first += n;
        n = rows - n;
    }
    return 1;
}
