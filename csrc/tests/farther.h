/* The largest distance so far, for tests: what is no number is infinitely far, where fmax would
 * take the other one. */
#ifndef INF_TESTS_FARTHER_H
#define INF_TESTS_FARTHER_H

#include <math.h>

static inline double farther(double worst, double a, double b) {
    double d = a == b ? 0 : fabs(a - b); /* both may be infinite */
    return d <= worst ? worst : d == d ? d : (double)INFINITY;
}

#endif
