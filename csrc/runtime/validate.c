/* The check of a step's input before anything of it is used. After it, every offset, count and
 * index is within the buffers, every block within the pool, and no two requests write or
 * read-and-write one block, so that the forward pass checks nothing.
 *
 * Lists are packed: each request's tokens, blocks and spans begin where the previous request's end.
 */
#include "runtime/fail.h"
#include "runtime/runtime.h"

/* block_marks[b]: 0 not listed in this step, else WRITTEN | (index of the request that lists it +
 * 1). */
#define WRITTEN 0x80000000u

static int check_head(const inf_device *d, inf_err *err) {
    const inf_step_head *h = d->step.head;
    const inf_device_config *c = &d->config;
    if (h->n_seqs == 0 || h->n_seqs > (uint32_t)c->max_seqs) {
        return inf_fail(err, INF_EINVAL, -1, -1, "a step has 1 to %d requests, not %u", c->max_seqs,
                        h->n_seqs);
    }
    if (h->n_tokens == 0 || h->n_tokens > (uint32_t)c->max_tokens) {
        return inf_fail(err, INF_EINVAL, -1, -1, "a step has 1 to %d tokens, not %u", c->max_tokens,
                        h->n_tokens);
    }
    if (h->n_blocks > (uint32_t)c->max_step_blocks || h->n_spans > (uint32_t)c->max_step_spans ||
        h->n_rows > (uint32_t)c->max_rows) {
        return inf_fail(err, INF_EINVAL, -1, -1,
                        "%u blocks, %u spans or %u rows exceed the buffers", h->n_blocks,
                        h->n_spans, h->n_rows);
    }
    if ((h->flags & ~(uint32_t)(INF_STEP_EMPTY_REMOTE | INF_STEP_NO_MASKS)) != 0) {
        return inf_fail(err, INF_EINVAL, -1, -1, "unknown step flags %#x", h->flags);
    }
    if (h->n_spans > 0 && (h->peer_timeout_ns == 0 || h->peer_timeout_ns > INT64_MAX)) {
        return inf_fail(err, INF_EINVAL, -1, -1, "a step with remote spans needs a peer timeout");
    }
    return INF_OK;
}

/* Where the lists of the next request must begin. */
typedef struct cursor {
    uint32_t tokens, blocks, spans;
} cursor;

/* Takes n entries at off; 0 if they do not follow the previous ones within the total. */
static int advance(uint32_t *at, uint32_t off, uint32_t n, uint32_t total) {
    if (off != *at || n > total - off) {
        return 0;
    }
    *at += n;
    return 1;
}

static int check_spans(const inf_device *d, const inf_step_seq *s, uint32_t i, inf_err *err) {
    uint32_t block = (uint32_t)d->config.block_size, pos = 0;
    for (uint32_t k = 0; k < s->n_spans; k++) {
        const inf_step_span *span = &d->step.spans[s->span_off + k];
        if (span->peer >= INF_MAX_PEERS) {
            return inf_fail(err, INF_EINVAL, -1, -1, "request %u: no peer %u", i, span->peer);
        }
        if (span->n_tokens == 0 || span->n_tokens % block != 0 || span->pos0 != pos ||
            span->n_tokens > s->local_pos0 - pos) {
            return inf_fail(
                err, INF_EINVAL, (int)span->peer, -1,
                "request %u: span %u of %u tokens at %u does not follow at %u before %u", i, k,
                span->n_tokens, span->pos0, pos, s->local_pos0);
        }
        pos += span->n_tokens;
    }
    if (pos != s->local_pos0) {
        return inf_fail(err, INF_EINVAL, -1, -1,
                        "request %u: its spans end at %u, its local tokens begin at %u", i, pos,
                        s->local_pos0);
    }
    return INF_OK;
}

/* A block may be read by several requests (a shared prefix), written by one, and never both. */
static int check_blocks(inf_device *d, const inf_step_seq *s, uint32_t i, inf_err *err) {
    uint32_t first_written = (s->pos0 - s->local_pos0) / (uint32_t)d->config.block_size;
    for (uint32_t k = 0; k < s->n_blocks; k++) {
        int32_t block = d->step.blocks[s->block_off + k];
        if (block < 0 || block >= d->config.num_blocks) {
            return inf_fail(err, INF_EINVAL, -1, -1, "request %u: no block %d in the pool", i,
                            block);
        }
        uint32_t mark = d->block_marks[block];
        uint32_t mine = (k >= first_written ? WRITTEN : 0) | (i + 1);
        if (mark != 0 && ((mark | mine) & WRITTEN || (mark & ~WRITTEN) == i + 1)) {
            return inf_fail(err, INF_EINVAL, -1, -1,
                            "request %u: block %d is listed twice in the step", i, block);
        }
        d->block_marks[block] = mine;
    }
    return INF_OK;
}

static int check_seq(inf_device *d, uint32_t i, cursor *at, inf_err *err) {
    const inf_step_head *h = d->step.head;
    const inf_step_seq *s = &d->step.seqs[i];
    uint32_t block = (uint32_t)d->config.block_size;
    if (s->slot >= (uint32_t)d->config.max_seqs || d->slots[s->slot] == NULL ||
        d->slot_marks[s->slot] != 0) {
        return inf_fail(err, INF_EINVAL, -1, -1, "request %u: slot %u is not open or used twice", i,
                        s->slot);
    }
    d->slot_marks[s->slot] = 1;
    if (s->n_tokens == 0 || !advance(&at->tokens, s->token_off, s->n_tokens, h->n_tokens) ||
        !advance(&at->blocks, s->block_off, s->n_blocks, h->n_blocks) ||
        !advance(&at->spans, s->span_off, s->n_spans, h->n_spans)) {
        return inf_fail(err, INF_EINVAL, -1, -1,
                        "request %u: its tokens, blocks or spans are not packed in the buffers", i);
    }
    uint64_t end = (uint64_t)s->pos0 + s->n_tokens;
    if (end > INT32_MAX || s->local_pos0 > s->pos0 || s->local_pos0 % block != 0) {
        return inf_fail(err, INF_EINVAL, -1, -1,
                        "request %u: positions %u.. with local tokens from %u are not allowed", i,
                        s->pos0, s->local_pos0);
    }
    if ((uint64_t)s->n_blocks * block < end - s->local_pos0) {
        return inf_fail(err, INF_EINVAL, -1, -1,
                        "request %u: %u blocks cannot hold %llu local tokens", i, s->n_blocks,
                        (unsigned long long)(end - s->local_pos0));
    }
    int status = check_spans(d, s, i, err);
    return status != INF_OK ? status : check_blocks(d, s, i, err);
}

static int check_tokens(const inf_device *d, inf_err *err) {
    for (uint32_t t = 0; t < d->step.head->n_tokens; t++) {
        if (d->step.tokens[t] < 0 || d->step.tokens[t] >= d->config.vocab) {
            return inf_fail(err, INF_EINVAL, -1, -1, "token %d is not in the vocabulary",
                            d->step.tokens[t]);
        }
    }
    return INF_OK;
}

/* Whether a mask allows any token of the vocabulary. */
static int allows_some(const uint32_t *mask, int32_t vocab) {
    int32_t whole = vocab / 32;
    for (int32_t i = 0; i < whole; i++) {
        if (mask[i] != 0) {
            return 1;
        }
    }
    return vocab % 32 != 0 && (mask[whole] & ((1u << (vocab % 32)) - 1)) != 0;
}

static int check_mask(const inf_device *d, uint32_t r, inf_err *err) {
    const inf_step_row *row = &d->step.rows[r];
    if (row->mask == 0) {
        return INF_OK;
    }
    if (row->target >= 0 || row->mask > (uint32_t)d->config.max_seqs) {
        return inf_fail(err, INF_EINVAL, -1, -1, "row %u: mask %u is out of range", r, row->mask);
    }
    uint64_t off = (uint64_t)(row->mask - 1) * inf_mask_words(d->config.vocab);
    return allows_some(d->step.masks + off, d->config.vocab)
               ? INF_OK
               : inf_fail(err, INF_EINVAL, -1, -1, "row %u: its mask allows no token", r);
}

/* Of a request's sampled rows each but the first follows the one before it: its token is a draft
 * of what that one samples. slot_marks become 2 with the first. */
static int follows(const inf_device *d, uint32_t r) {
    const inf_step_row *row = &d->step.rows[r];
    return inf_row_follows(&d->step, r) && row[-1].token + 1 == row->token &&
           inf_row_drafts(&d->step, r) <= INF_MAX_DRAFTS;
}

static int check_rows(inf_device *d, inf_err *err) {
    const inf_step_head *h = d->step.head;
    uint32_t masks = 0;
    for (uint32_t r = 0; r < h->n_rows; r++) {
        const inf_step_row *row = &d->step.rows[r];
        if (row->seq >= h->n_seqs || row->n_top > INF_MAX_TOP || row->target >= d->config.vocab) {
            return inf_fail(err, INF_EINVAL, -1, -1, "row %u is out of range", r);
        }
        const inf_step_seq *s = &d->step.seqs[row->seq];
        if (row->token < s->token_off || row->token - s->token_off >= s->n_tokens) {
            return inf_fail(err, INF_EINVAL, -1, -1, "row %u: token %u is not of request %u", r,
                            row->token, row->seq);
        }
        if (row->target < 0 && d->slot_marks[s->slot] != 1 && !follows(d, r)) {
            return inf_fail(err, INF_EINVAL, -1, -1,
                            "request %u has rows to sample that do not follow each other, or "
                            "more than %d",
                            row->seq, INF_MAX_DRAFTS + 1);
        }
        if (row->target < 0) {
            d->slot_marks[s->slot] = 2;
        }
        if (row->mask != 0 && ++masks > (uint32_t)d->config.max_seqs) {
            return inf_fail(err, INF_EINVAL, -1, -1, "more than %d rows have masks",
                            d->config.max_seqs);
        }
        int status = check_mask(d, r, err);
        if (status != INF_OK) {
            return status;
        }
    }
    return INF_OK;
}

static int check_all(inf_device *d, uint32_t *seen, inf_err *err) {
    int status = check_head(d, err);
    cursor at = {0, 0, 0};
    if (status == INF_OK) {
        status = check_tokens(d, err);
    }
    for (uint32_t i = 0; status == INF_OK && i < d->step.head->n_seqs; i++) {
        *seen = i + 1;
        status = check_seq(d, i, &at, err);
    }
    if (status != INF_OK) {
        return status;
    }
    const inf_step_head *h = d->step.head;
    if (at.tokens != h->n_tokens || at.blocks != h->n_blocks || at.spans != h->n_spans) {
        return inf_fail(
            err, INF_EINVAL, -1, -1,
            "the requests have %u tokens, %u blocks and %u spans, the head says otherwise",
            at.tokens, at.blocks, at.spans);
    }
    status = check_rows(d, err);
    /* Last: its waves are held from here on, so the step begins. */
    return status != INF_OK ? status : inf_dist_waves_begin(d->dist, &d->step, err);
}

int inf_validate_step(inf_device *d, inf_err *err) {
    uint32_t seen = 0; /* requests whose blocks and slots may be marked */
    int status = check_all(d, &seen, err);
    /* A marked block is in the list [0, n_blocks) of a head that passed. */
    for (uint32_t k = 0; seen > 0 && k < d->step.head->n_blocks; k++) {
        int32_t block = d->step.blocks[k];
        if (block >= 0 && block < d->config.num_blocks) {
            d->block_marks[block] = 0;
        }
    }
    for (uint32_t i = 0; status != INF_OK && i < seen; i++) {
        uint32_t slot = d->step.seqs[i].slot;
        if (slot < (uint32_t)d->config.max_seqs) {
            d->slot_marks[slot] = 0;
        }
    }
    return status;
}
