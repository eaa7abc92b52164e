/* Which CPUs are near a device, over trees of files as the kernel has them. Needs no device. */
#include "verbs_pair.h"

#include <sched.h>
#include <sys/stat.h>

#include "transport/verbs/verbs_impl.h"

static char root[] = "/tmp/near.XXXXXX";

static void put(const char *name, const char *text) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", root, name);
    FILE *f = fopen(path, "w");
    CHECK(f && fputs(text, f) >= 0 && fclose(f) == 0);
}

static int near(uint64_t cpus[INF_CPU_WORDS]) { return inf_verbs_near(root, root, cpus); }

static void expect(const char *list, int rc, uint64_t first, uint64_t last) {
    uint64_t cpus[INF_CPU_WORDS];
    put("node1/cpulist", list);
    CHECK(near(cpus) == rc);
    if (rc == INF_OK)
        CHECK(cpus[0] == first && cpus[INF_CPU_WORDS - 1] == last);
}

int main(void) {
    uint64_t cpus[INF_CPU_WORDS];
    char path[256];
    CHECK(mkdtemp(root) != NULL);
    CHECK(near(cpus) == INF_EUNSUPPORTED); /* no device behind it, as with Soft-RoCE */
    static const char *const DIRS[] = {"device", "node1"};
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", root, DIRS[i]);
        CHECK(mkdir(path, 0700) == 0);
    }
    put("device/numa_node", "-1\n");
    CHECK(near(cpus) == INF_EUNSUPPORTED);
    put("device/numa_node", "1\n");
    CHECK(near(cpus) == INF_EUNSUPPORTED); /* no such node */
    expect("0-3,8,10-11\n", INF_OK, 0xd0f, 0);
    expect("63\n", INF_OK, UINT64_C(1) << 63, 0);
    expect("1022-1023", INF_OK, 0, UINT64_C(3) << 62);
    expect("\n", INF_OK, 0, 0); /* memory without CPUs */
    static const char *const BAD[] = {"x", "3-", "4-2", "1024", "0-1024", "1;2", "-3", "0-3 4"};
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++)
        expect(BAD[i], INF_EUNSUPPORTED, 0, 0);

    /* A thread keeps to what is near and allowed, and to what it had if that is nothing. */
    cpu_set_t had, has;
    CHECK(sched_getaffinity(0, sizeof had, &had) == 0);
    int first = 0;
    while (!CPU_ISSET(first, &had))
        first++;
    memset(cpus, 0, sizeof cpus);
    inf_verbs_pin(cpus);
    CHECK(sched_getaffinity(0, sizeof has, &has) == 0 && CPU_EQUAL(&had, &has));
    cpus[first / 64] |= UINT64_C(1) << first % 64;
    inf_verbs_pin(cpus);
    CHECK(sched_getaffinity(0, sizeof has, &has) == 0);
    CHECK(CPU_COUNT(&has) == 1 && CPU_ISSET(first, &has));

    snprintf(path, sizeof path, "rm -r %s", root);
    CHECK(system(path) == 0);
    return 0;
}
