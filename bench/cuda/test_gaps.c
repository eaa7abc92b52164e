/* The arithmetic of gaps.h, and the declarations of tracer.h beside CUPTI's header. */
#include <string.h>

#include "bench/cuda/gaps.h"
#include "bench/cuda/tracer.h"
#include "tests/check.h"

#if defined(__has_include)
#if __has_include(<cuda.h>) && __has_include(<cupti_activity.h>)
#include <cupti_version.h>
#endif
#endif

#if defined(CUPTI_API_VERSION) && CUPTI_API_VERSION >= 18
#include <cupti_activity.h>
#if CUPTI_API_VERSION < 19
typedef CUpti_ActivityKernel8 real_kernel;
typedef CUpti_ActivityMemcpy5 real_copy;
#elif CUPTI_API_VERSION < 130000
typedef CUpti_ActivityKernel9 real_kernel;
typedef CUpti_ActivityMemcpy5 real_copy; /* 6 begins like it */
#else
typedef CUpti_ActivityKernel10 real_kernel;
typedef CUpti_ActivityMemcpy6 real_copy;
#endif
#define SAME(ours, real, field)                                                                    \
    _Static_assert(offsetof(ours, field) == offsetof(real, field) &&                               \
                       sizeof(((ours *)0)->field) == sizeof(((real *)0)->field),                   \
                   #real " has " #field " elsewhere")
SAME(cupti_kernel, real_kernel, kind);
SAME(cupti_kernel, real_kernel, start);
SAME(cupti_kernel, real_kernel, end);
SAME(cupti_kernel, real_kernel, name);
_Static_assert(offsetof(cupti_copy, copy_kind) == offsetof(real_copy, copyKind), "copyKind");
SAME(cupti_copy, real_copy, kind);
SAME(cupti_copy, real_copy, bytes);
SAME(cupti_copy, real_copy, start);
SAME(cupti_copy, real_copy, end);
SAME(cupti_copy, CUpti_ActivityMemset4, kind);
SAME(cupti_copy, CUpti_ActivityMemset4, bytes);
SAME(cupti_copy, CUpti_ActivityMemset4, start);
SAME(cupti_copy, CUpti_ActivityMemset4, end);
_Static_assert((int)CUPTI_ACTIVITY_KIND_MEMCPY == CUPTI_MEMCPY &&
                   (int)CUPTI_ACTIVITY_KIND_MEMSET == CUPTI_MEMSET &&
                   (int)CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL == CUPTI_CONCURRENT_KERNEL &&
                   (int)CUPTI_ERROR_MAX_LIMIT_REACHED == CUPTI_LAST_RECORD &&
                   (int)CUPTI_ACTIVITY_FLAG_FLUSH_FORCED == CUPTI_FLUSH_FORCED &&
                   sizeof(CUpti_ActivityKind) == sizeof(uint32_t),
               "CUPTI's numbers");
/* Copies that have a name of their own. */
_Static_assert(CUPTI_ACTIVITY_MEMCPY_KIND_HTOD == 1 && CUPTI_ACTIVITY_MEMCPY_KIND_DTOH == 2 &&
                   CUPTI_ACTIVITY_MEMCPY_KIND_DTOD == 8,
               "CUPTI's copies");
#endif

static void test_sort(void) {
    activity a[] = {{30, 40, 0, 1}, {0, 0, 1, 1},   {10, 25, 2, 0},
                    {50, 45, 3, 1}, {10, 20, 4, 1}, {5, 5, 5, 1}};
    CHECK(gaps_sort(a, 6) == 4); /* not what has no times, or ends before it begins */
    CHECK(a[0].name == 5 && a[1].name == 4 && a[2].name == 2 && a[3].name == 0);
    CHECK(gaps_sort(a, 0) == 0 && gaps_sort(NULL, 0) == 0);
}

static void test_union(void) {
    step_gaps g = gaps_of(NULL, 0, NULL);
    CHECK(g.span == 0 && g.busy == 0 && g.gaps == 0 && g.kernels == 0);

    activity one[] = {{100, 130, 0, 1}};
    g = gaps_of(one, 1, NULL);
    CHECK(g.span == 30 && g.busy == 30 && g.gaps == 0 && g.n_gaps == 0 && g.kernels == 1);

    /* Apart, touching, overlapping, one within another, equal begins, and a copy. */
    activity a[] = {{10, 20, 0, 1}, {25, 30, 1, 1},  {30, 40, 1, 1},
                    {35, 50, 2, 1}, {60, 100, 3, 1}, {70, 80, 4, 1},
                    {70, 90, 4, 1}, {95, 110, 5, 0}, {113, 113, 0, 1}};
    name_time t[6];
    memset(t, 0, sizeof t);
    g = gaps_of(a, 9, t);
    CHECK(g.span == 103 && g.busy == 10 + 25 + 50 && g.gaps == 5 + 10 + 3);
    CHECK(g.busy + g.gaps == g.span);
    CHECK(g.n_gaps == 3 && g.longest == 10 && g.kernels == 8 && g.copies == 1);
    CHECK(t[0].whole == 10 && t[0].own == 10 && t[0].calls == 2 && t[0].gap == 3);
    CHECK(t[1].whole == 15 && t[1].own == 15 && t[1].calls == 2 && t[1].gap == 5);
    CHECK(t[2].whole == 15 && t[2].own == 10 && t[2].gap == 0);
    CHECK(t[3].whole == 40 && t[3].own == 40 && t[3].gap == 10);
    CHECK(t[4].whole == 30 && t[4].own == 0 && t[4].calls == 2);
    CHECK(t[5].whole == 15 && t[5].own == 10 && t[5].name == 5);
    uint64_t own = 0, gap = 0;
    for (int i = 0; i < 6; i++) {
        own += t[i].own;
        gap += t[i].gap;
    }
    CHECK(own == g.busy && gap == g.gaps);
    /* A second step of the same names. */
    gaps_of(one, 1, t);
    CHECK(t[0].whole == 40 && t[0].own == 40 && t[0].calls == 3);
}

static void test_cut(void) {
    static const step_window steps[] = {{1000, 1100}, {1200, 1300}, {1400, 1500}};
    activity a[] = {
        {900, 910, 0, 1},                       /* long before */
        {990, 999, 1, 1},                       /* the clocks differ */
        {1000, 1010, 1, 1}, {1090, 1160, 1, 1}, /* to its begin's step */
        {1149, 1150, 1, 1},                     /* in the pause, nearer to the first */
        {1150, 1151, 2, 1}, {1300, 1310, 2, 1}, {1350, 1360, 3, 1},
        {1549, 1560, 3, 1}, {1550, 1560, 4, 1}, /* long behind */
    };
    size_t first[4];
    CHECK(gaps_cut(a, 10, steps, 3, 50, first) == 5);
    CHECK(first[0] == 1 && first[1] == 5 && first[2] == 7 && first[3] == 9);
    CHECK(gaps_cut(a, 0, steps, 3, 50, first) == 0);
    CHECK(first[0] == 0 && first[3] == 0);
    /* None of the middle one's. */
    CHECK(gaps_cut(a, 3, steps, 3, 50, first) == 1);
    CHECK(first[1] == 3 && first[2] == 3 && first[3] == 3);
    CHECK(gaps_cut(a, 3, steps, 0, 50, first) == 0 && first[0] == 0);
}

static void test_versions(void) {
    CHECK(cupti_version_known(18) && cupti_version_known(28) && cupti_version_known(130001));
    CHECK(!cupti_version_known(17) && !cupti_version_known(140000) && !cupti_version_known(0));
}

int main(void) {
    test_sort();
    test_union();
    test_cut();
    test_versions();
    printf("ok\n");
    return 0;
}
