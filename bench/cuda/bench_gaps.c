#define _GNU_SOURCE
#include "bench/cuda/bench_gaps.h"

#include <string.h>
#include <unistd.h>

#include "bench/cuda/tracer.h"

enum { CONTEXT = 1024, STEPS = 15, NAMES = 12, PAUSE_US = 500 };

static const int32_t batches[] = {1, 8, 64};
enum { BATCHES = sizeof batches / sizeof *batches };

static inf_device *open_for(const shape *s, int32_t gpu, int32_t kv_dtype, int32_t num_blocks) {
    inf_device *d = open_device(s, gpu, kv_dtype, num_blocks);
    open_slots(d);
    return d;
}

/* A case's line begins like this. */
static void print_case(const char *bench, const shape *s, int32_t batch) {
    printf("{\"bench\":\"%s\",\"shape\":\"%s\",\"batch\":%d,\"context\":%d", bench, s->name, batch,
           CONTEXT);
}

static void print_text(const char *key, const char *text) {
    printf(",\"%s\":\"", key);
    for (; text != NULL && *text != 0; text++) {
        if (*text == '"' || *text == '\\') {
            putchar('\\');
        }
        putchar((unsigned char)*text < ' ' ? ' ' : *text);
    }
    putchar('"');
}

static int by_whole(const void *x, const void *y) {
    const name_time *a = x, *b = y;
    return a->whole > b->whole ? -1 : a->whole < b->whole;
}

/* Sums per step, those of the longest names first. */
static void print_names(const shape *s, int32_t batch, name_time *times) {
    qsort(times, TRACER_NAMES, sizeof *times, by_whole);
    for (int i = 0; i < NAMES && times[i].calls > 0; i++) {
        print_case("gaps_kernel", s, batch);
        printf(",\"rank\":%d,\"calls\":%.2f,\"us\":%.2f,\"own_us\":%.2f,\"gap_us\":%.2f", i + 1,
               (double)times[i].calls / STEPS, 1e-3 * (double)times[i].whole / STEPS,
               1e-3 * (double)times[i].own / STEPS, 1e-3 * (double)times[i].gap / STEPS);
        print_text("name", tracer_name(times[i].name));
        printf("}\n");
    }
}

/* What was taken, cut into steps. */
static void print_gaps(const shape *s, int32_t batch, double ms, double traced,
                       const step_window *steps) {
    size_t n, lost, first[STEPS + 1];
    activity *list = tracer_take(&n, &lost);
    size_t timed = gaps_sort(list, n);
    size_t outside = gaps_cut(list, timed, steps, STEPS, 500 * PAUSE_US, first);
    static name_time times[TRACER_NAMES];
    memset(times, 0, sizeof times);
    double of[7][STEPS]; /* span, busy, gaps, longest, number of gaps, kernels, copies */
    for (int i = 0; i < STEPS; i++) {
        step_gaps g = gaps_of(list + first[i], first[i + 1] - first[i], times);
        of[0][i] = 1e-3 * (double)g.span, of[1][i] = 1e-3 * (double)g.busy;
        of[2][i] = 1e-3 * (double)g.gaps, of[3][i] = 1e-3 * (double)g.longest;
        of[4][i] = g.n_gaps, of[5][i] = g.kernels, of[6][i] = g.copies;
    }
    free(list);
    double span = median_of(of[0], STEPS), gaps = median_of(of[2], STEPS);
    print_case("gaps", s, batch);
    printf(",\"ms\":%.4f,\"traced_ms\":%.4f,\"cupti\":%u,\"steps\":%d,\"span_us\":%.2f,"
           "\"busy_us\":%.2f,\"gaps_us\":%.2f,\"gap_share\":%.4f,\"longest_gap_us\":%.2f,"
           "\"n_gaps\":%.0f,\"kernels\":%.0f,\"copies\":%.0f,\"outside\":%zu,\"untimed\":%zu,"
           "\"lost\":%zu",
           ms, traced * 1e3, tracer_version(), STEPS, span, median_of(of[1], STEPS), gaps,
           span > 0 ? gaps / span : 0, median_of(of[3], STEPS), median_of(of[4], STEPS),
           median_of(of[5], STEPS), median_of(of[6], STEPS), outside, n - timed, lost);
    if (first[STEPS] == first[0]) {
        print_text("error", "CUPTI gave no records of these steps");
    }
    printf("}\n");
    print_names(s, batch, times);
    fflush(stdout);
}

static void trace_batch(inf_device *d, const shape *s, int32_t batch, double ms) {
    step_window steps[STEPS];
    double took[STEPS];
    size_t n, lost;
    set_step(d, batch, CONTEXT, 1, 0);
    for (int i = 0; i < 3; i++) { /* the recording, then replays */
        run_step(d);
    }
    free(tracer_take(&n, &lost));
    for (int i = 0; i < STEPS; i++) {
        usleep(PAUSE_US); /* so that steps lie further apart than clocks (gaps_cut) */
        steps[i].from = tracer_now();
        took[i] = run_step(d);
        steps[i].upto = tracer_now();
    }
    usleep(PAUSE_US);
    print_gaps(s, batch, ms, median_of(took, STEPS), steps);
}

void bench_gaps(const shape *s, int32_t gpu, int32_t kv_dtype, int32_t num_blocks) {
    double ms[BATCHES] = {0};
    inf_device *d = open_for(s, gpu, kv_dtype, num_blocks);
    for (int i = 0; i < BATCHES; i++) {
        if (fits(d, batches[i], CONTEXT)) {
            set_step(d, batches[i], CONTEXT, 1, 0);
            ms[i] = 1e3 * time_steps(d, 21).median;
        }
    }
    inf_device_close(d);
    /* The first step of a batch times its products, which a tracer would disturb; the second is
     * recorded, and that it must see. */
    d = open_for(s, gpu, kv_dtype, num_blocks);
    for (int i = 0; i < BATCHES; i++) {
        if (ms[i] > 0) {
            set_step(d, batches[i], CONTEXT, 1, 0);
            run_step(d);
        }
    }
    char why[1024] = "";
    int failed = tracer_open(why, sizeof why);
    for (int i = 0; i < BATCHES; i++) {
        if (ms[i] > 0 && !failed) {
            trace_batch(d, s, batches[i], ms[i]);
        } else if (ms[i] > 0) {
            print_case("gaps", s, batches[i]);
            printf(",\"ms\":%.4f", ms[i]);
            print_text("error", why);
            printf("}\n");
        }
    }
    if (!failed) {
        tracer_close();
        for (int i = 0; i < BATCHES; i++) {
            if (ms[i] > 0) {
                set_step(d, batches[i], CONTEXT, 1, 0);
                double off = 1e3 * time_steps(d, 21).median;
                print_case("gaps_off", s, batches[i]);
                printf(",\"off_ms\":%.4f}\n", off);
            }
        }
    }
    inf_device_close(d);
}
