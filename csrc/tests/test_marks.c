/* Marks: each is a function of its own, and a call costs next to nothing. With an argument this is
 * the small process that engine/trace's test looks at: for every line on stdin it plays so many
 * messages. */
#include "check.h"
#include "dist/marks.h"
#include "runtime/clock.h"

#include <stdio.h>
#include <stdlib.h>

typedef int (*six)(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);

static const six message[] = {
    inf_mark_query_posted,   inf_mark_query_wire,   inf_mark_query_arrived, inf_mark_query_computed,
    inf_mark_query_returned, inf_mark_query_back,   inf_mark_query_merged,  inf_mark_move_posted,
    inf_mark_move_wire,      inf_mark_move_arrived, inf_mark_move_computed, inf_mark_move_returned,
    inf_mark_move_back,
};
enum { MESSAGE = sizeof message / sizeof *message };

static void check_each(void) {
    for (int i = 0; i < MESSAGE; i++) {
        CHECK(message[i](1, 2, 3, 4, 5, 6) == i + 1);
    }
    CHECK(inf_mark_step_begun(1, 2, 3, 4) == MESSAGE + 1);
    CHECK(inf_mark_step_seq(1, 2, 3, 4, 5, 6) == MESSAGE + 2);
    CHECK(inf_mark_step_ended(1) == MESSAGE + 3);
}

/* Direct calls, as dist makes them; the best of some tries on a machine that does other things. */
static double call_ns(void) {
    enum { CALLS = 1 << 20 };
    double best = 1e9;
    for (int i = 0; i < 20; i++) {
        uint64_t begun = inf_now();
        for (uint64_t k = 0; k < CALLS; k++) {
            (void)inf_mark_query_posted(1, 2, k, 4, 5, 6);
        }
        double ns = (double)(inf_now() - begun) / CALLS;
        best = ns < best ? ns : best;
    }
    return best;
}

/* A step of two layers: each asks peer 3 (this process too, which knows the home as peer 5), then a
 * move. */
static void play(uint64_t step) {
    const uint64_t lane = 0xfedcba9876543210u, bytes = 4096;
    (void)inf_mark_step_begun(step, 1, 2, 1);
    (void)inf_mark_step_seq(step, 0xabcd1234, 7, 100 + step, 2, 96);
    for (uint64_t layer = 0; layer < 2; layer++) {
        for (int i = 0; i < 7; i++) {
            (void)message[i](i >= 2 && i <= 4 ? 5 : 3, lane, step, layer, 2, bytes);
        }
    }
    (void)inf_mark_step_ended(step);
    for (int i = 7; i < MESSAGE; i++) {
        (void)message[i](i >= 9 && i <= 11 ? 5 : 3, lane, step, 8, 4, bytes);
    }
}

int main(int argc, char **argv) {
    (void)argv;
    check_each();
    if (argc == 1) {
        double ns = call_ns();
        printf("a mark that nobody looks at takes %.2f ns\n", ns);
        return 0;
    }
    puts("ready");
    fflush(stdout);
    uint64_t step = 0;
    for (char line[32]; fgets(line, sizeof line, stdin) != NULL;) {
        long n = strtol(line, NULL, 10);
        uint64_t begun = inf_now();
        for (long i = 0; i < n; i++) {
            play(++step);
        }
        printf("%llu\n", (unsigned long long)(inf_now() - begun));
        fflush(stdout);
    }
    return 0;
}
