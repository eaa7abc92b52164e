/* Vigils: how long they last, and that a thread which was held up has none for a while. */
#include "runtime/vigil.h"

#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

#include "tests/check.h"

static const int64_t LONG = INT64_C(3600000000000);

static void *held_up(void *arg) {
    (void)arg;
    inf_vigil v = inf_vigil_begin(LONG);
    usleep(1000);
    CHECK(!inf_vigil_goes_on(&v));
    CHECK(!inf_vigil_goes_on(&v));
    v = inf_vigil_begin(LONG); /* still at rest */
    CHECK(!inf_vigil_goes_on(&v));
    return NULL;
}

static void *at_work(void *arg) {
    (void)arg;
    inf_vigil v = inf_vigil_begin(LONG);
    usleep(1000);
    inf_vigil_worked(&v, LONG);
    CHECK(v.seen < v.until);
    usleep(1000);
    inf_vigil_worked(&v, 1000); /* it was not that alone */
    CHECK(v.seen == v.until);
    return NULL;
}

/* A vigil ends by itself, and one of no time never begins. */
static void *short_ones(void *arg) {
    (void)arg;
    inf_vigil v = inf_vigil_begin(0);
    CHECK(!inf_vigil_goes_on(&v));
    v = inf_vigil_begin(-1);
    CHECK(!inf_vigil_goes_on(&v));
    inf_vigil_worked(&v, 0);
    CHECK(!inf_vigil_goes_on(&v));
    v = inf_vigil_begin(1000);
    while (inf_vigil_goes_on(&v)) {
    }
    CHECK(v.seen >= v.until);
    return NULL;
}

/* Rests are a thread's own, so each case has a thread. */
static void on_a_thread(void *(*run)(void *)) {
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, run, NULL) == 0 && pthread_join(thread, NULL) == 0);
}

int main(void) {
    on_a_thread(held_up);
    on_a_thread(at_work);
    on_a_thread(short_ones);
    puts("vigil: ok");
    return 0;
}
