/* The CPUs beside a device: a thread that polls a NIC's queues from another NUMA node pays for it
 * with every message. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "transport/verbs/verbs_impl.h"

enum { CPUS = 64 * INF_CPU_WORDS, LINE = 4096 };

static bool read_line(const char *dir, const char *name, char line[LINE]) {
    char path[512];
    if (snprintf(path, sizeof path, "%s/%s", dir, name) >= (int)sizeof path)
        return false;
    FILE *f = fopen(path, "re");
    bool ok = f && fgets(line, LINE, f) != NULL;
    if (f)
        fclose(f);
    return ok;
}

/* A list as the kernel writes it: 0-3,8,10-11 */
static bool parse_list(const char *s, uint64_t cpus[INF_CPU_WORDS]) {
    memset(cpus, 0, INF_CPU_WORDS * sizeof *cpus);
    while (*s && *s != '\n') {
        char *end;
        unsigned long first = strtoul(s, &end, 10), last = first;
        if (end == s)
            return false;
        if (*end == '-') {
            s = end + 1;
            last = strtoul(s, &end, 10);
            if (end == s)
                return false;
        }
        if (last < first || last >= CPUS)
            return false;
        for (unsigned long i = first; i <= last; i++)
            cpus[i / 64] |= UINT64_C(1) << i % 64;
        if (*end && *end != ',' && *end != '\n')
            return false;
        s = *end == ',' ? end + 1 : end;
    }
    return true;
}

int inf_verbs_near(const char *device_path, const char *nodes_path, uint64_t cpus[INF_CPU_WORDS]) {
    char line[LINE], name[64];
    if (!read_line(device_path, "device/numa_node", line))
        return INF_EUNSUPPORTED;
    char *end;
    long node = strtol(line, &end, 10);
    if (end == line || node < 0 || node > 4095) /* -1: the machine has one node, or does not say */
        return INF_EUNSUPPORTED;
    snprintf(name, sizeof name, "node%ld/cpulist", node);
    return read_line(nodes_path, name, line) && parse_list(line, cpus) ? INF_OK : INF_EUNSUPPORTED;
}

int inf_verbs_device_cpus(const inf_verbs_device *device, uint64_t cpus[INF_CPU_WORDS]) {
    cpu_set_t mine;
    int rc =
        inf_verbs_near(device->context->ibv->device->ibdev_path, "/sys/devices/system/node", cpus);
    if (rc != INF_OK || sched_getaffinity(getpid(), sizeof mine, &mine) != 0)
        return INF_EUNSUPPORTED;
    bool some = false, all = true;
    for (size_t i = 0; i < CPUS && i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &mine)) {
            bool near = (cpus[i / 64] >> i % 64 & 1) != 0;
            some = some || near;
            all = all && near;
        }
    return some && !all ? INF_OK : INF_EUNSUPPORTED;
}

void inf_verbs_pin(const uint64_t cpus[INF_CPU_WORDS]) {
    cpu_set_t mine, wanted;
    if (sched_getaffinity(getpid(), sizeof mine, &mine) != 0)
        return;
    CPU_ZERO(&wanted);
    for (size_t i = 0; i < CPUS && i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &mine) && (cpus[i / 64] >> i % 64 & 1))
            CPU_SET(i, &wanted);
    if (CPU_COUNT(&wanted) > 0)
        sched_setaffinity(0, sizeof wanted, &wanted);
}
