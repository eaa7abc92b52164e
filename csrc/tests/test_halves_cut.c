/* The cut of a step into halves. */
#include "model/halves.h"

#include "tests/check_says.h"

static uint32_t below(uint64_t *rng, uint32_t n) {
    *rng = *rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((*rng >> 33) % n);
}

/* Every row of every request is in one half, where the request says so. */
static void test_cut(void) {
    enum { SEQS = 9 };
    uint64_t rng = 3;
    for (int round = 0; round < 2000; round++) {
        inf_step_head head = {
            .step_id = 7, .n_spans = 5, .n_rows = 4, .n_seqs = 1 + below(&rng, SEQS)};
        inf_step_seq seqs[SEQS], room[SEQS + 1];
        inf_seq_out out[SEQS];
        int32_t tokens[SEQS * 40];
        for (uint32_t i = 0; i < head.n_seqs; i++) {
            uint32_t n = 1 + below(&rng, i % 2 ? 40 : 2);
            seqs[i] = (inf_step_seq){.slot = i,
                                     .token_off = head.n_tokens,
                                     .n_tokens = n,
                                     .pos0 = below(&rng, 1000),
                                     .tag = i};
            head.n_tokens += n;
        }
        inf_step_buffers step = {.head = &head, .seqs = seqs, .tokens = tokens, .seq_out = out};
        inf_halves h = {.seqs = room};
        int cut = inf_halves_cut(&h, &step);
        CHECK(cut == (head.n_tokens > 16), "%u rows", head.n_tokens);
        if (!cut) {
            continue;
        }
        uint32_t row = 0, seq = 0, at = 0;
        for (int i = 0; i < INF_HALVES; i++) {
            const inf_step_buffers *b = &h.step[i];
            CHECK(b->tokens == tokens + row && b->head->step_id == 7 && b->head->n_spans == 5 &&
                      b->head->n_rows == 0 && b->head->n_tokens > 0,
                  "half %d", i);
            uint32_t rows = 0;
            for (uint32_t k = 0; k < b->head->n_seqs; k++) {
                const inf_step_seq *s = &b->seqs[k];
                CHECK(s->tag == seq && &b->seq_out[k] == &out[seq], "request %u in half %d", seq,
                      i);
                CHECK(s->token_off == rows && s->pos0 == seqs[seq].pos0 + at, "where it begins");
                rows += s->n_tokens;
                at += s->n_tokens;
                if (at == seqs[seq].n_tokens) {
                    seq++;
                    at = 0;
                }
            }
            CHECK(rows == b->head->n_tokens, "half %d has %u rows", i, rows);
            row += rows;
        }
        CHECK(row == head.n_tokens && seq == head.n_seqs, "%u of %u rows", row, head.n_tokens);
        CHECK(h.head[0].n_tokens >= h.head[1].n_tokens && h.head[0].n_tokens % 16 == 0, "%u and %u",
              h.head[0].n_tokens, h.head[1].n_tokens);
    }
}

int main(void) {
    test_cut();
    return 0;
}
