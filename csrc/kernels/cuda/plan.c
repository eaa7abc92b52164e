/* The cut of a step's attention into pieces, see plan.h.
 *
 * What a good cut is. A piece runs as several thread blocks: one per kv head in decode; in prefill
 * one per kv head and PREFILL_ROWS query heads times rows. Of all blocks, `slots` run at a time,
 * and the hardware starts the next one where one ends. Decode is bound by memory: every slot gets
 * the same share of the bandwidth, so time is counted in tokens that one slot reads at that share.
 * Prefill is bound by arithmetic, and time is counted in tokens that one block computes when all
 * slots are taken. With a load of L (tokens times blocks) and pieces of at most c tokens, n blocks
 * in all, list scheduling ends by both
 *
 *     ceil(n / slots) * c      and      L / slots + c
 *
 * (Graham 1969; the second because no slot idles before the last piece starts). Since big pieces go
 * first, the last to start is a small one, and in decode the blocks that run last share the
 * bandwidth among fewer: the second is taken with half the mean instead of c, but not below c. A
 * block alone on its SM is faster than at the equal share, but only so much. To this come a cost
 * per piece (its start and its end) and the merging of partials. The chunk c is the cheapest of a
 * few candidates: no cut at all, and L cut over multiples of the slots. Fewer candidates than the
 * optimum needs, but each costs one walk over the tiles, and a plan is made for every step.
 *
 * Why capacities hold. Let tile t have u_t units (a unit is the granule of cuts) and b_t blocks, at
 * least kv_heads, and L = sum u_t b_t. A candidate's chunk is at least L / (K slots) units, with
 * K = MULTIPLES of the class. Tile t is cut into k_t pieces, k_t - 1 < u_t / chunk, so that
 *
 *     sum (k_t - 1)  <=  sum u_t / chunk  <=  L / (kv_heads chunk)  <=  K slots / kv_heads
 *
 * pieces come to those that are not cut. A segment has at most rows / PREFILL_ROWS + 1 tiles, of
 * which at most one, the last, is decode's. As for parts: cut tiles have k_t >= 2, so
 * k_t <= 2 (k_t - 1), and a tile has at most R b_t rows, with R the most rows of a tile of decode
 * over kv_heads, or PREFILL_ROWS over heads. So cut tiles make at most
 *
 *     2 sum (k_t - 1) R b_t  <=  2 R L / chunk  <=  2 R K slots
 *
 * part rows, and every other piece that is not whole shares a row with another segment: these make
 * at most shared_rows. */
#include "kernels/cuda/plan.h"

#include <stddef.h>
#include <string.h>

enum { DECODE, PREFILL, CLASSES };
enum { ALIGN = 16 };   /* of token0 */
enum { BUCKETS = 64 }; /* of sizes, for the order of pieces */

/* Constants of the classes; times in tokens as above. */
static const struct {
    int32_t unit;      /* cuts are multiples of it, from the tile's first token */
    int32_t multiples; /* K above */
    int32_t steps;     /* candidates per multiple of the slots */
    int32_t least;     /* units in a chunk */
    int32_t resident;
    double piece, cut, combine; /* per block, per block of a cut tile, once if any is cut */
    double alone;               /* least share of a token's time that a lone block takes */
    double tail;                /* of the mean piece, beyond the even share */
} constants[CLASSES] = {
    [DECODE] = {64, 8, 1, 1, 1, 64, 16, 128, 0.6, 0.5},
    [PREFILL] = {128, 2, 2, 8, 2, 32, 128, 64, 0.6, 0.5},
};

typedef struct tile {
    uint32_t row0, rows; /* within the segment */
    uint32_t lo, hi;     /* tokens; lo a multiple of ALIGN; both 0 when it sees none */
    int class;
} tile;

typedef struct totals {
    int64_t blocks, load; /* of the tiles uncut; units times blocks */
    uint32_t most;        /* units of the biggest tile */
} totals;

typedef struct planner {
    const inf_cuda_plan_shape *shape;
    const inf_cuda_segment *segments;
    int32_t n_segments, group;
    int32_t slots[CLASSES];
    totals total[CLASSES];
    uint32_t chunk[CLASSES]; /* units */
} planner;

static int prepare(planner *p, const inf_cuda_plan_shape *shape) {
    if (shape->heads < 1 || shape->kv_heads < 1 || shape->heads % shape->kv_heads != 0 ||
        shape->window < 0 || shape->sms < 1 || shape->decode_resident < 0 ||
        shape->prefill_resident < 0 || shape->decode_chunk < 0 ||
        shape->decode_chunk % constants[DECODE].unit != 0 || shape->prefill_chunk < 0 ||
        shape->prefill_chunk % constants[PREFILL].unit != 0)
        return INF_EINVAL;
    memset(p, 0, sizeof *p);
    p->shape = shape;
    p->group = shape->heads / shape->kv_heads;
    int32_t resident[CLASSES] = {shape->decode_resident, shape->prefill_resident};
    for (int c = 0; c < CLASSES; c++)
        p->slots[c] = shape->sms * (resident[c] > 0 ? resident[c] : constants[c].resident);
    return INF_OK;
}

int inf_cuda_plan_capacity(const inf_cuda_plan_shape *shape, const inf_cuda_plan_limits *limits,
                           inf_cuda_plan_sizes *out) {
    planner p;
    int status = prepare(&p, shape);
    if (status != INF_OK)
        return status;
    if (limits->segments < 0 || limits->rows < 0 || limits->segment_rows < 0 ||
        limits->shared_rows < 0)
        return INF_EINVAL;
    int64_t decode_rows = INF_CUDA_DECODE_ROWS / p.group, shares[CLASSES];
    for (int c = 0; c < CLASSES; c++)
        shares[c] = (int64_t)constants[c].multiples * p.slots[c];
    int64_t decode = limits->segments + shares[DECODE] / shape->kv_heads;
    int64_t prefill = limits->segments + limits->segment_rows / INF_CUDA_PREFILL_ROWS +
                      shares[PREFILL] / shape->kv_heads;
    int64_t parts = limits->shared_rows + 2 * decode_rows * shares[DECODE] / shape->kv_heads +
                    2 * INF_CUDA_PREFILL_ROWS * shares[PREFILL] / shape->heads;
    if (decode > INT32_MAX || prefill > INT32_MAX || parts > INT32_MAX)
        return INF_EINVAL;
    out->decode = decode_rows > 0 ? (int32_t)decode : 0;
    out->prefill = (int32_t)prefill;
    out->parts = (int32_t)parts;
    out->rows = limits->rows;
    return INF_OK;
}

/* The tile of segment s that begins at row0. */
static tile tile_at(const planner *p, const inf_cuda_segment *s, uint32_t row0) {
    tile t = {.row0 = row0, .rows = s->rows - row0};
    if (t.rows > INF_CUDA_PREFILL_ROWS)
        t.rows = INF_CUDA_PREFILL_ROWS;
    t.class = t.rows * (uint32_t)p->group <= INF_CUDA_DECODE_ROWS ? DECODE : PREFILL;
    /* Positions relative to the segment's first key: the first row sees keys from `first - window +
     * 1` on, the last one up to `last`. */
    int64_t first = (int64_t)s->q_pos0 + row0 - s->kv_pos0, last = first + t.rows - 1;
    int64_t hi = last + 1 < (int64_t)s->n_tokens ? last + 1 : (int64_t)s->n_tokens;
    int64_t lo = p->shape->window > 0 ? first + 1 - p->shape->window : 0;
    if (lo < 0)
        lo = 0;
    if (lo < hi) {
        t.lo = (uint32_t)lo / ALIGN * ALIGN;
        t.hi = (uint32_t)hi;
    }
    return t;
}

static uint32_t units_of(const tile *t) {
    uint32_t unit = (uint32_t)constants[t->class].unit, tokens = t->hi - t->lo;
    return tokens / unit + (tokens % unit != 0);
}

/* Thread blocks per piece of a tile. */
static int32_t blocks_of(const planner *p, const tile *t) {
    int32_t rows = (int32_t)t->rows * p->group;
    return t->class == DECODE
               ? p->shape->kv_heads
               : p->shape->kv_heads * ((rows + INF_CUDA_PREFILL_ROWS - 1) / INF_CUDA_PREFILL_ROWS);
}

/* Pieces of a tile. */
static uint32_t cuts(uint32_t units, uint32_t chunk) {
    return units <= chunk ? 1 : (units + chunk - 1) / chunk;
}

#define FOR_TILES(p, t, s)                                                                         \
    for (int32_t s = 0; s < (p)->n_segments; s++)                                                  \
        for (tile t = tile_at((p), &(p)->segments[s], 0); t.row0 < (p)->segments[s].rows;          \
             t = tile_at((p), &(p)->segments[s], t.row0 + t.rows))

/* Estimated time with a chunk of that many units. */
static double estimate(const planner *p, int class, uint32_t chunk) {
    int64_t blocks = 0, of_cut = 0;
    uint32_t most = 0;
    FOR_TILES(p, t, s) {
        if (t.class != class)
            continue;
        uint32_t units = units_of(&t), n = cuts(units, chunk), size = (units + n - 1) / n;
        most = size > most ? size : most;
        blocks += (int64_t)n * blocks_of(p, &t);
        of_cut += n > 1 ? (int64_t)n * blocks_of(p, &t) : 0;
    }
    double unit = constants[class].unit, slots = p->slots[class], rounds = (double)blocks / slots;
    double big = most * unit, time;
    if (rounds <= 1.0) {
        /* What shares the bandwidth is faster the fewer there are; what shares an SM, once every
         * block has one of its own. */
        double alone =
            class == DECODE || p->slots[class] > p->shape->sms ? constants[class].alone : 1.0;
        double least = class == DECODE ? rounds : blocks > p->shape->sms ? 1.0 : alone;
        time = big * (least > alone ? least : alone);
    } else {
        int64_t waves = (blocks + p->slots[class] - 1) / p->slots[class];
        double whole_waves = (double)waves * big;
        double load = (double)p->total[class].load * unit;
        double shared = load / slots + constants[class].tail * load / (double)blocks;
        shared = shared > big ? shared : big;
        time = whole_waves < shared ? whole_waves : shared;
    }
    time += constants[class].piece * (rounds > 1.0 ? rounds : 1.0);
    if (of_cut > 0)
        time += constants[class].combine + constants[class].cut * (double)of_cut / slots;
    return time;
}

static uint32_t choose_chunk(const planner *p, int class) {
    const totals *total = &p->total[class];
    int32_t forced = class == DECODE ? p->shape->decode_chunk : p->shape->prefill_chunk;
    if (forced > 0)
        return (uint32_t)(forced / constants[class].unit);
    uint32_t best = total->most, least = (uint32_t)constants[class].least;
    if (best <= least)
        return best;
    double best_time = estimate(p, class, best), slots = p->slots[class];
    for (int32_t k = 0; k <= constants[class].multiples * constants[class].steps; k++) {
        /* Even shares over k / steps times the slots; k == 0: so that one wave is enough for sure,
         * if it can be, since blocks <= those of the tiles + load / chunk. */
        double shares = k > 0 ? slots * k / constants[class].steps : slots - (double)total->blocks;
        if (shares < 1)
            continue;
        double share = (double)total->load / shares;
        if (share >= total->most)
            continue;
        uint32_t chunk = (uint32_t)share + 1;
        if (chunk < least)
            chunk = least;
        double time = estimate(p, class, chunk);
        if (time < best_time) {
            best = chunk;
            best_time = time;
        }
    }
    return best;
}

static int shares_rows(const uint32_t *named, const inf_cuda_segment *s, const tile *t) {
    const uint32_t *row = named + s->row0 + t->row0;
    for (uint32_t i = 0; i < t->rows; i++)
        if (row[i] > 1)
            return 1;
    return 0;
}

/* The bucket of pieces of that many units: big ones first. */
static uint32_t bucket_of(uint32_t units, uint32_t chunk) {
    uint32_t small = (uint32_t)((uint64_t)units * (BUCKETS - 1) / (chunk > 0 ? chunk : 1));
    return small >= BUCKETS ? 0 : BUCKETS - 1 - small;
}

/* Writes the pieces of a tile to where `next` of their bucket says. */
static void cut_tile(const planner *p, const tile *t, int32_t segment, int whole,
                     inf_cuda_work *work, int32_t *next, uint32_t *n_parts) {
    uint32_t units = units_of(t), n = cuts(units, p->chunk[t->class]);
    uint32_t unit = (uint32_t)constants[t->class].unit;
    uint32_t bucket = bucket_of((units + n - 1) / n, p->chunk[t->class]);
    uint32_t from = t->lo;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t upto = t->lo + (uint32_t)((uint64_t)units * (i + 1) / n) * unit;
        if (i + 1 == n)
            upto = t->hi;
        inf_cuda_work *w = &work[next[bucket]++];
        *w = (inf_cuda_work){.segment = (uint32_t)segment,
                             .row0 = t->row0,
                             .rows = t->rows,
                             .token0 = from,
                             .tokens = upto - from,
                             .part = INF_CUDA_WHOLE};
        if (!(whole && n == 1)) {
            w->part = *n_parts;
            *n_parts += t->rows;
        }
        from = upto;
    }
}

/* Counts pieces and parts, then fills both lists. named[r]: segments that name row r. */
static int cut_all(planner *p, const uint32_t *named, const inf_cuda_plan_sizes *sizes,
                   inf_cuda_plan_lists *lists) {
    int32_t next[CLASSES][BUCKETS] = {{0}};
    int64_t pieces[CLASSES] = {0}, parts = 0;
    FOR_TILES(p, t, s) {
        uint32_t units = units_of(&t), n = cuts(units, p->chunk[t.class]);
        pieces[t.class] += n;
        if (pieces[t.class] > INT32_MAX)
            return INF_EFULL;
        next[t.class][bucket_of((units + n - 1) / n, p->chunk[t.class])] += (int32_t)n;
        if (n > 1 || shares_rows(named, &p->segments[s], &t))
            parts += (int64_t)n * t.rows;
    }
    if (pieces[DECODE] > sizes->decode || pieces[PREFILL] > sizes->prefill || parts > sizes->parts)
        return INF_EFULL;
    for (int c = 0; c < CLASSES; c++)
        for (int32_t b = 0, at = 0; b < BUCKETS; b++) {
            int32_t n = next[c][b];
            next[c][b] = at;
            at += n;
        }
    inf_cuda_work *work[CLASSES] = {lists->decode, lists->prefill};
    lists->n_parts = 0;
    FOR_TILES(p, t, s) {
        int whole = !shares_rows(named, &p->segments[s], &t);
        cut_tile(p, &t, s, whole, work[t.class], next[t.class], &lists->n_parts);
    }
    lists->n_decode = (int32_t)pieces[DECODE];
    lists->n_prefill = (int32_t)pieces[PREFILL];
    return INF_OK;
}

/* off counts, then says where each row's entries begin while they are filled in, then where they
 * end, which is where the next row's begin. */
static void index_parts(const planner *p, int32_t rows, inf_cuda_plan_lists *lists) {
    const inf_cuda_work *work[CLASSES] = {lists->decode, lists->prefill};
    int32_t n[CLASSES] = {lists->n_decode, lists->n_prefill};
    uint32_t *off = lists->off;
    memset(off, 0, ((size_t)rows + 1) * sizeof *off);
    if (lists->n_parts == 0)
        return;
    for (int pass = 0; pass < 2; pass++) {
        for (int c = 0; c < CLASSES; c++)
            for (int32_t i = 0; i < n[c]; i++) {
                const inf_cuda_work *w = &work[c][i];
                uint32_t *row = off + p->segments[w->segment].row0 + w->row0;
                for (uint32_t r = 0; w->part != INF_CUDA_WHOLE && r < w->rows; r++) {
                    if (pass == 0)
                        row[r]++;
                    else
                        lists->list[row[r]++] = w->part + r;
                }
            }
        for (uint32_t r = 0, at = 0; pass == 0 && r <= (uint32_t)rows; r++) {
            uint32_t count = off[r];
            off[r] = at;
            at += count;
        }
    }
    memmove(off + 1, off, (size_t)rows * sizeof *off);
    off[0] = 0;
}

int inf_cuda_plan(const inf_cuda_plan_shape *shape, const inf_cuda_segment *segments,
                  int32_t n_segments, int32_t rows, const inf_cuda_plan_sizes *sizes,
                  inf_cuda_plan_lists *lists) {
    planner p;
    int status = prepare(&p, shape);
    if (status != INF_OK)
        return status;
    if (n_segments < 0 || rows < 0)
        return INF_EINVAL;
    if (rows > sizes->rows)
        return INF_EFULL;
    p.segments = segments;
    p.n_segments = n_segments;
    uint32_t *named = lists->off; /* until index_parts */
    memset(named, 0, ((size_t)rows + 1) * sizeof *named);
    for (int32_t s = 0; s < n_segments; s++) {
        if ((uint64_t)segments[s].row0 + segments[s].rows > (uint64_t)rows)
            return INF_EINVAL;
        for (uint32_t r = 0; r < segments[s].rows; r++)
            named[segments[s].row0 + r]++;
    }
    FOR_TILES(&p, t, s) {
        totals *total = &p.total[t.class];
        uint32_t units = units_of(&t);
        total->blocks += blocks_of(&p, &t);
        total->load += (int64_t)units * blocks_of(&p, &t);
        total->most = units > total->most ? units : total->most;
    }
    for (int c = 0; c < CLASSES; c++)
        p.chunk[c] = choose_chunk(&p, c);
    status = cut_all(&p, named, sizes, lists);
    if (status == INF_OK)
        index_parts(&p, rows, lists);
    return status;
}
