#include "runtime/vigil.h"

#include "runtime/clock.h"

static const int64_t HELD_UP_NS = 500000, REST_NS = 200000000;

static _Thread_local int64_t rests_until;

inf_vigil inf_vigil_begin(int64_t ns) {
    inf_vigil v = {0, 0};
    if (ns > 0) {
        v.seen = inf_now();
        v.until = v.seen < rests_until ? v.seen : v.seen + ns;
    }
    return v;
}

/* Looks at the clock; what is more than allowed since the last look was a hold-up. */
static void look(inf_vigil *v, int64_t allowed) {
    int64_t now = inf_now();
    if (now - v->seen > allowed) {
        rests_until = now + REST_NS;
    }
    v->seen = now < rests_until ? v->until : now;
}

int inf_vigil_goes_on(inf_vigil *v) {
    if (v->seen < v->until) {
        for (int i = 0; i < 8; i++) {
            inf_cpu_relax();
        }
        look(v, HELD_UP_NS);
    }
    return v->seen < v->until;
}

void inf_vigil_worked(inf_vigil *v, int64_t ns) {
    if (v->seen < v->until) {
        look(v, HELD_UP_NS + ns);
    }
}
