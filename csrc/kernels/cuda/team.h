/* What the ranks of an instance know of each other's failures, and the deadline of what they wait
 * for. Plain C, no CUDA header.
 *
 * A GPU in a sum waits in a kernel for the others. If one of them never comes, it waits for ever,
 * and with it every thread that waits for that GPU, wherever it does: in a loop of this program, or
 * within the driver, which makes allocations and copies wait too. A gather is a sum here. So a
 * thread of the team's own, which never calls CUDA but to end the sums, keeps the deadline, and
 * ends what is under way when a rank has failed or the deadline has passed. It does so for whoever
 * found out, since ending sums may take as long as the driver likes.
 *
 * The first loss stays, and is the cause that is reported: what other ranks come to after it is
 * its consequence. */
#ifndef INF_CUDA_TEAM_H
#define INF_CUDA_TEAM_H

#include <stdint.h>

#include "infinite/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Milliseconds after which the ranks are given up: while there is a sum that is not over, or a
 * wait, and no other has begun or ended. */
#define INF_TEAM_DEADLINE "INFINITE_TP_DEADLINE_MS"
enum { INF_TEAM_DEADLINE_MS = 60000 };

typedef struct inf_team inf_team;

typedef struct inf_team_loss {
    int32_t rank;   /* that failed; -1: no one rank is to blame */
    int32_t status; /* not 0 */
    const char *at; /* a literal: in what */
    char why[160];  /* "": the status says it */
} inf_team_loss;

/* end(arg) is called once, by the team's thread, after the first loss, and beside who is between
 * enter and leave if he stays there for a quarter of the deadline after it. late is the status of
 * a deadline that has passed. */
int inf_team_open(void (*end)(void *arg), void *arg, int32_t late, inf_team **out, inf_err *err);

/* 1: no rank was lost, and what end ends may be used until inf_team_leave, by one thread at a time.
 * The deadline is kept meanwhile and losses are noted, so that a call that blocks in between is
 * ended as well. 0: a rank was lost; do not use it, nor leave. */
int inf_team_enter(inf_team *t);
void inf_team_leave(inf_team *t);

/* A sum is about to be given. It is over when a wait for the ranks is that began after it. */
void inf_team_begin(inf_team *t);
/* Around a wait: the sums so far, and those that are over now. */
uint64_t inf_team_wait(inf_team *t);
void inf_team_waited(inf_team *t, uint64_t over);

/* Notes the first loss. Any thread. why NULL: none. */
void inf_team_lose(inf_team *t, int32_t rank, int32_t status, const char *at, const char *why);
/* NULL: there is none. What it points at does not change, and lives as long as the team. */
const inf_team_loss *inf_team_lost(inf_team *t);
/* 1: a rank was lost, and what it left had as long as the deadline to come to an end. */
int inf_team_given_up(inf_team *t);

/* 0: end does not return, and nothing that it uses may go, nor the team. Safe on NULL. */
int inf_team_close(inf_team *t);

#ifdef __cplusplus
}
#endif
#endif
