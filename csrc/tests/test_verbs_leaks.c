/* Links over RDMA leave nothing behind: neither many that are opened and closed nor many whose
 * peer is killed. Counted are this process's descriptors and memory, and what the kernel says
 * of queue pairs, completion queues, memory regions and domains of all processes (`rdma resource
 * show`). Needs an RDMA device, Soft-RoCE will do. */
#include "verbs_pair.h"

#include <dirent.h>
#include <malloc.h>
#include <signal.h>
#include <sys/wait.h>

static rdma_ports ports;

typedef struct {
    int fds;
    long pages;            /* resident */
    size_t heap;           /* bytes in use */
    char objects[4 << 10]; /* a line for each device */
} usage;

static int count_fds(void) {
    DIR *dir = opendir("/proc/self/fd");
    int n = 0;
    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

static long count_pages(void) {
    long total = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    CHECK(f && fscanf(f, "%ld %ld", &total, &resident) == 2);
    fclose(f);
    return resident;
}

/* Empty where the tool is missing, which the guest does not allow. */
static void list_objects(char *out, size_t bytes) {
    FILE *f = popen("PATH=$PATH:/usr/sbin:/sbin rdma resource show 2>/dev/null", "r");
    CHECK(f);
    out[fread(out, 1, bytes - 1, f)] = '\0';
    pclose(f);
    CHECK(strchr(out, ':') || !getenv("GUEST"));
}

static usage take_stock(void) {
    usage u = {.fds = count_fds(), .pages = count_pages(), .heap = mallinfo2().uordblks};
    list_objects(u.objects, sizeof u.objects);
    return u;
}

static bool same_objects(const usage *a, const usage *b) {
    return a->fds == b->fds && strcmp(a->objects, b->objects) == 0;
}

/* After so many rounds: what one of them leaves behind shows as often as there were rounds. */
static void compare(const char *what, const usage *before, int rounds, double begun) {
    usage now = take_stock();
    long pages = now.pages - before->pages, heap = (long)now.heap - (long)before->heap;
    printf(
        "  %s, %d times, %.1f ms each: %d descriptors before, %d after; %+ld pages, %+ld bytes of "
        "heap; the kernel has, before and after:\n%s%s",
        what, rounds, 1e3 * (now_s() - begun) / rounds, before->fds, now.fds, pages, heap,
        before->objects, now.objects);
    CHECK(same_objects(before, &now));
    CHECK(pages < rounds / 4 && heap < 16 * rounds);
}

/* The means of this test see what is left behind, or it would show nothing. */
static void test_a_leak_shows(void) {
    usage before = take_stock();
    inf_verbs_endpoint *ep;
    inf_verbs_info info;
    inf_err err;
    inf_verbs_config c = pair_config(&ports, 0, (pair_shape){2, 4096, 0});
    CHECK_OK(inf_verbs_endpoint_create(ports.device[0], &c, &ep, &info, &err));
    usage with = take_stock();
    inf_verbs_endpoint_destroy(ep);
    usage after = take_stock();
    CHECK(with.fds > before.fds && after.fds == before.fds);
    CHECK(strcmp(before.objects, after.objects) == 0);
    CHECK(!before.objects[0] || strcmp(before.objects, with.objects) != 0);
    CHECK(before.heap == 0 ||
          with.heap > before.heap + 16); /* 0: sanitizers have a heap of their own */
}

static void open_and_close(int i) {
    inf_link *l[2];
    pair_shape shape = {2, 4096, i % 3 == 0 ? INF_VERBS_NO_WINDOWS : 0};
    pair_links(&ports, shape, l, NULL);
    if (i % 4 != 0) {
        SEND(l[0], (uint64_t)i, 4096);
        if (i % 4 == 1)
            TAKE(l[1], (uint64_t)i, 4096);
    }
    inf_link_close(l[i % 2]);
    inf_link_close(l[1 - i % 2]);
}

static void test_open_close(int rounds) {
    for (int i = 0; i < 24; i++)
        open_and_close(i);
    usage before = take_stock();
    double begun = now_s();
    for (int i = 0; i < rounds; i++)
        open_and_close(i);
    compare("a link opened and closed", &before, rounds, begun);
}

/* --- deaths --- */

static const pair_shape DEATH_SHAPE = {4, 4096, 0};
enum { AT_A_TIME = 4 };

/* The peer: this program once more, since a fork of a process with RDMA devices could not use
 * them. Sends until it is killed. */
static int live_and_die(char **args) {
    inf_err err;
    snprintf(ports.name[1], sizeof ports.name[1], "%s", args[0]);
    ports.port[1] = (uint32_t)atoi(args[1]);
    CHECK_OK(inf_verbs_device_open(ports.name[1], "test", &ports.device[1], &err));
    inf_link *link = join_link(&ports, 1, DEATH_SHAPE, atoi(args[2]));
    for (uint64_t i = 0;; i++)
        SEND(link, i, 1 + mix(i) % 4096);
}

/* Starts a peer; its end of a connection is its alone. */
static pid_t begin_life(int *sock) {
    int s[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        char port[16], number[16];
        snprintf(port, sizeof port, "%u", ports.port[1]);
        snprintf(number, sizeof number, "%d", dup(s[1]));
        execl("/proc/self/exe", "test_verbs_leaks", "peer", ports.name[1], port, number,
              (char *)NULL);
        _exit(127);
    }
    close(s[1]);
    *sock = s[0];
    return child;
}

/* What was on its way arrives or not, then the link is dead. */
static void end_life(inf_link *link, uint64_t taken) {
    int rc;
    while ((rc = try_take(link, taken, 1 + mix(taken) % 4096)) == INF_OK || rc == INF_AGAIN) {
        if (rc == INF_AGAIN)
            wait_one(link);
        else
            taken++;
    }
    inf_err err;
    expect_death(link, INF_EPEER, &err);
    inf_link_close(link);
}

/* Some peers that are killed while their messages are on the way, some sooner, some later. */
static void deaths(int round) {
    pid_t child[AT_A_TIME];
    int sock[AT_A_TIME], status;
    inf_link *link[AT_A_TIME];
    uint64_t taken[AT_A_TIME];
    for (int i = 0; i < AT_A_TIME; i++)
        child[i] = begin_life(&sock[i]);
    for (int i = 0; i < AT_A_TIME; i++)
        link[i] = join_link(&ports, 0, DEATH_SHAPE, sock[i]);
    for (int i = 0; i < AT_A_TIME; i++) {
        for (taken[i] = 0; taken[i] <= (uint64_t)((round + i) % 7); taken[i]++)
            TAKE(link[i], taken[i], 1 + mix(taken[i]) % 4096);
        CHECK(kill(child[i], SIGKILL) == 0);
    }
    for (int i = 0; i < AT_A_TIME; i++) {
        end_life(link[i], taken[i]);
        CHECK(waitpid(child[i], &status, 0) == child[i] && WIFSIGNALED(status));
    }
}

static void test_deaths(int rounds) {
    for (int i = 0; i < 3; i++)
        deaths(i);
    usage before = take_stock();
    double begun = now_s();
    for (int i = 0; i < rounds; i += AT_A_TIME)
        deaths(i);
    compare("a peer killed", &before, rounds, begun);
}

int main(int argc, char **argv) {
    if (argc == 5 && strcmp(argv[1], "peer") == 0)
        return live_and_die(argv + 2);
    int links = argc > 1 ? atoi(argv[1]) : 1000, deaths = argc > 2 ? atoi(argv[2]) : 100;
    rdma_find_or_skip(&ports);
    rdma_open(&ports);
    test_a_leak_shows();
    test_open_close(links);
    fflush(stdout);
    test_deaths(deaths);
    rdma_close(&ports);
    printf("ok\n");
    return 0;
}
