/* The draw of one token. Sums are in double, and everything goes in one order, so that a token is a
 * function of the numbers, the seed and the position alone. */
#include "model/draw.h"

#include <float.h>
#include <math.h>

#define GREEDY_BELOW 1e-5f

/* The finalizer of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
 * generators"). */
static uint64_t mix(uint64_t z) {
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

double inf_sample_uniform(uint64_t seed, uint64_t position) {
    return (double)(mix(mix(seed) ^ mix(~position)) >> 11) * 0x1p-53;
}

/* a stands before b in descending order: larger value, then lower id. */
static int before(inf_candidate a, inf_candidate b) {
    return a.value > b.value || (a.value == b.value && a.id < b.id);
}

/* Restores the heap (the root is before all others) below index i. */
static void sift_down(inf_candidate *heap, int32_t n, int32_t i) {
    inf_candidate moved = heap[i];
    for (;;) {
        int32_t child = 2 * i + 1;
        if (child >= n) {
            break;
        }
        if (child + 1 < n && before(heap[child + 1], heap[child])) {
            child++;
        }
        if (!before(heap[child], moved)) {
            break;
        }
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = moved;
}

static void heapify(inf_candidate *heap, int32_t n) {
    for (int32_t i = n / 2 - 1; i >= 0; i--) {
        sift_down(heap, n, i);
    }
}

/* Moves the root to heap[n - 1] and returns it; n - 1 are left. */
static inf_candidate pop(inf_candidate *heap, int32_t n) {
    inf_candidate root = heap[0];
    heap[0] = heap[n - 1];
    heap[n - 1] = root;
    sift_down(heap, n - 1, 0);
    return root;
}

static int32_t argmax(const float *x, int32_t n) {
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++) {
        best = x[i] > x[best] ? i : best;
    }
    return best;
}

/* Draws among all with x >= cut, in the order of ids. */
static int32_t draw_untruncated(const float *x, int32_t vocab, float max, float cut, float inv_t,
                                double u) {
    double sum = 0;
    for (int32_t i = 0; i < vocab; i++) {
        sum += x[i] >= cut ? (double)expf((x[i] - max) * inv_t) : 0.0;
    }
    double left = u * sum;
    int32_t last = -1;
    for (int32_t i = 0; i < vocab; i++) {
        double weight = x[i] >= cut ? (double)expf((x[i] - max) * inv_t) : 0.0;
        if (weight > 0) {
            last = i;
            left -= weight;
            if (left < 0) {
                break;
            }
        }
    }
    return last; /* rounding may leave the scan at its end: the last token with any weight */
}

/* Draws in the nucleus. Descending order comes from a heap, one pop at a time, so that only as many
 * candidates are sorted as are kept; the popped ones stand at the end of the array. */
static int32_t draw_truncated(const inf_sampling *s, const float *x, int32_t vocab, float max,
                              float cut, float inv_t, double u, inf_candidate *heap) {
    int32_t n = 0;
    double sum = 0;
    for (int32_t i = 0; i < vocab; i++) {
        if (x[i] >= cut) {
            heap[n++] = (inf_candidate){x[i], i};
            sum += (double)expf((x[i] - max) * inv_t);
        }
    }
    heapify(heap, n);
    int32_t keep = s->top_k > 0 && s->top_k < n ? s->top_k : n;
    int32_t popped = 0;
    if (keep < n) { /* top_p counts within the top k */
        sum = 0;
        for (; popped < keep; popped++) {
            sum += (double)expf((pop(heap, n - popped).value - max) * inv_t);
        }
    }
    double kept = 0, enough = s->top_p < 1 ? (double)s->top_p * sum : sum;
    int32_t nucleus = 0;
    while (nucleus < keep && (nucleus == 0 || kept < enough)) {
        if (nucleus == popped) {
            (void)pop(heap, n - popped);
            popped++;
        }
        kept += (double)expf((heap[n - 1 - nucleus].value - max) * inv_t);
        nucleus++;
    }
    double left = u * kept;
    for (int32_t i = 0; i < nucleus; i++) {
        left -= (double)expf((heap[n - 1 - i].value - max) * inv_t);
        if (left < 0) {
            return heap[n - 1 - i].id;
        }
    }
    return heap[n - 1].id; /* rounding: the most likely token */
}

int32_t inf_draw(const inf_sampling *s, const float *x, int32_t vocab, float max, uint64_t position,
                 inf_candidate *heap) {
    if (s->temperature < GREEDY_BELOW || s->top_k == 1) {
        return argmax(x, vocab);
    }
    float inv_t = 1.0f / s->temperature;
    /* p_i >= min_p * p_max  <=>  x_i >= x_max + T ln min_p */
    float cut = s->min_p > 0 ? max + s->temperature * logf(s->min_p) : -FLT_MAX;
    cut = cut > -FLT_MAX ? cut : -FLT_MAX; /* above what a mask dropped */
    double u = inf_sample_uniform(s->seed, position);
    if (s->top_p < 1 || (s->top_k > 0 && s->top_k < vocab)) {
        return draw_truncated(s, x, vocab, max, cut, inv_t, u, heap);
    }
    return draw_untruncated(x, vocab, max, cut, inv_t, u);
}
