/* The team of ranks: its deadline, and that the first loss is the one that stays. */
#include "kernels/cuda/team.c"

#include <unistd.h>

#include "tests/check_says.h"

enum { LATE = 600, TRIES = 4000 }; /* of 5 ms */

static atomic_int ends, blocked, inside;
static pthread_t ended_by;

static void end(void *arg) {
    ended_by = pthread_self();
    CHECK(arg == &ends, "another argument");
    while (atomic_load(&blocked)) {
        (void)usleep(1000);
    }
    atomic_fetch_add(&ends, 1);
}

static inf_team *open_team(const char *deadline_ms) {
    inf_team *t = NULL;
    inf_err err = {0};
    setenv(INF_TEAM_DEADLINE, deadline_ms, 1);
    atomic_store(&ends, 0);
    CHECK(inf_team_open(end, &ends, LATE, &t, &err) == INF_OK, "%s", err.message);
    CHECK(inf_team_lost(t) == NULL && !inf_team_given_up(t), "lost from the beginning");
    return t;
}

static const inf_team_loss *await_loss(inf_team *t) {
    for (int i = 0; i < TRIES && inf_team_lost(t) == NULL; i++) {
        (void)usleep(5000);
    }
    return inf_team_lost(t);
}

/* Its thread has come to its end, or a team would be as one that is stuck when it is slow. */
static void await_gone(inf_team *t) {
    int gone = 0;
    for (int i = 0; i < TRIES && !gone; i++) {
        (void)usleep(5000);
        pthread_mutex_lock(&t->lock);
        gone = t->gone;
        pthread_mutex_unlock(&t->lock);
    }
}

static void close_team(inf_team *t, int ended) {
    if (ended) {
        await_gone(t);
    }
    CHECK(inf_team_close(t), "it cannot be closed");
    CHECK(atomic_load(&ends) == ended, "%d ends", atomic_load(&ends));
    CHECK(!ended || !pthread_equal(ended_by, pthread_self()), "whoever found out had to wait");
}

/* A sum that nobody waits for, or a wait. */
static void test_late(int wait) {
    inf_team *t = open_team("100");
    if (wait) {
        (void)inf_team_wait(t);
    } else {
        inf_team_begin(t);
    }
    const inf_team_loss *loss = await_loss(t);
    CHECK(loss != NULL && loss->rank == -1 && loss->status == LATE, "nothing was lost");
    CHECK(strcmp(loss->why, "cannot end it: no rank went on within 100 ms") == 0, "%s", loss->why);
    for (int i = 0; i < TRIES && !inf_team_given_up(t); i++) {
        (void)usleep(5000);
    }
    CHECK(inf_team_given_up(t), "it is waited for yet");
    close_team(t, 1);
}

/* What goes on, and what is over, has no deadline. That is some hundred times what a sum takes
 * here, for a machine that is late with its threads. */
static void test_in_time(void) {
    const int64_t deadline_ns = 2000000000;
    inf_team *t = open_team("2000");
    uint64_t sums = 0;
    for (int64_t end_at = inf_now() + deadline_ns * 5 / 4; inf_now() < end_at; sums++) {
        inf_team_begin(t);
        (void)usleep(5000);
    }
    uint64_t begun = inf_team_wait(t);
    CHECK(begun == sums, "%d of %d", (int)begun, (int)sums);
    inf_team_waited(t, begun);
    (void)usleep((useconds_t)(deadline_ns / 1000 * 5 / 4));
    CHECK(inf_team_lost(t) == NULL, "%s", inf_team_lost(t)->why);
    inf_team_begin(t); /* and a wait that began before it is not its end */
    inf_team_waited(t, (inf_team_wait(t), begun));
    CHECK(await_loss(t) != NULL, "nothing was lost");
    close_team(t, 1);
    close_team(open_team("no number"), 0);
}

typedef struct finder {
    inf_team *team;
    int32_t rank;
} finder;

static void *find(void *arg) {
    const finder *f = arg;
    for (int i = 0; i < 100; i++) {
        if (inf_team_enter(f->team)) {
            CHECK(atomic_load(&ends) == 0, "it was ended");
            inf_team_leave(f->team);
        }
        if (i == 50) {
            inf_team_lose(f->team, f->rank, 700 + f->rank, "a step", NULL);
            CHECK(!inf_team_enter(f->team), "what was lost is used");
        }
    }
    return NULL;
}

static void test_first(void) {
    enum { FINDERS = 4 };
    inf_team *t = open_team("60000");
    pthread_t threads[FINDERS];
    finder finders[FINDERS];
    for (int i = 0; i < FINDERS; i++) {
        finders[i] = (finder){t, i};
        CHECK(pthread_create(&threads[i], NULL, find, &finders[i]) == 0, "no thread");
    }
    const inf_team_loss *loss = await_loss(t);
    CHECK(loss != NULL, "nothing was lost");
    inf_team_loss first = *loss;
    for (int i = 0; i < FINDERS; i++) {
        (void)pthread_join(threads[i], NULL);
    }
    inf_team_lose(t, 7, 1, "later", "for another reason");
    CHECK(loss->rank == first.rank && loss->status == 700 + first.rank && loss->why[0] == 0,
          "another loss: %d, %d", loss->rank, loss->status);
    close_team(t, 1);
}

static void *stay(void *arg) {
    inf_team *t = arg;
    CHECK(inf_team_enter(t), "lost from the beginning");
    inf_team_begin(t);
    atomic_store(&inside, 1);
    for (int i = 0; i < TRIES && atomic_load(&ends) == 0; i++) {
        (void)usleep(5000);
    }
    CHECK(atomic_load(&ends) == 1, "nobody ended what it was in");
    inf_team_leave(t);
    return NULL;
}

/* A thread that does not leave before it is ended, as one that is within a call for a sum: the
 * deadline is kept, losses are noted, and who would enter is told. */
static void test_inside(int late) {
    inf_team *t = open_team(late ? "400" : "4000");
    pthread_t thread;
    atomic_store(&inside, 0);
    CHECK(pthread_create(&thread, NULL, stay, t) == 0, "no thread");
    while (!atomic_load(&inside)) {
        (void)usleep(1000);
    }
    if (!late) {
        inf_team_lose(t, 2, 702, "a step", NULL);
        CHECK(inf_team_lost(t) != NULL, "nothing was lost");
    }
    CHECK(!inf_team_enter(t), "what another uses is used");
    const inf_team_loss *loss = inf_team_lost(t);
    CHECK(loss != NULL && loss->status == (late ? LATE : 702), "nothing was lost");
    for (int i = 0; i < TRIES && atomic_load(&ends) == 0; i++) {
        (void)usleep(5000);
    }
    CHECK(atomic_load(&ends) == 1, "it was not ended");
    (void)pthread_join(thread, NULL);
    close_team(t, 1);
}

/* An end that does not return: who closes does not wait for it for ever, and leaves everything. */
static void test_stuck(void) {
    static inf_team *t; /* the leak sanitizer finds it */
    t = open_team("100");
    atomic_store(&blocked, 1);
    inf_team_lose(t, 0, 1, "a step", NULL);
    CHECK(!inf_team_close(t), "it was closed");
    atomic_store(&blocked, 0);
    for (int i = 0; i < TRIES && atomic_load(&ends) == 0; i++) {
        (void)usleep(5000);
    }
    CHECK(atomic_load(&ends) == 1, "%d ends", atomic_load(&ends));
}

int main(void) {
    test_late(0);
    test_late(1);
    test_in_time();
    test_first();
    test_inside(0);
    test_inside(1);
    test_stuck();
    puts("team: ok");
    return 0;
}
