/* What lands pieces of moves: messages (land.c) and puts (grants.c). */
#ifndef INF_DIST_LAND_H
#define INF_DIST_LAND_H

#include "dist/internal.h"

/* --- land.c --- */

/* The slot was prepared before the message was polled. */
int inf_land_answer(inf_dist *d, inf_rail *r, uint32_t kind, const inf_wire_move *m,
                    const inf_grant *grants, uint32_t n);
/* A sender asks for blocks again when the rail on which it had asked before is dead. If this end
 * has not seen that yet, it does now. */
bool inf_land_end_older(inf_dist *d, const inf_rail *r, const inf_wire_move *m);

/* --- grants.c --- */

/* A sender asks where it may put, or says that it has. */
int inf_grants_ask(inf_dist *d, inf_rail *r, const inf_wire_move *m);
int inf_grants_landed(inf_dist *d, inf_rail *r, const inf_wire_move *m);
/* Goes on with what keeps the rail busy. */
int inf_grants_go_on(inf_dist *d, inf_rail *r);
/* Is a sender that was granted blocks silent, so that the rail is to end? */
bool inf_grants_overdue(inf_dist *d, inf_rail *r);

#endif
