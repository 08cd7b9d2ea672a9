// Times container runtimes against each other: every iteration gives each of them its turn, so that what slows the
// machine down for a while slows them all. hack/bench calls it:
//
//   client ITERATIONS GAP_US TRUE_BUNDLE FILTERED_BUNDLE MAPPED_BUNDLE SLEEP_BUNDLE STATE_DIR ID_PREFIX [NAME PATH ENV]...
//
// The first contender is the floor, the second keel; the one called crun, if any, is the other measure. ENV is one
// NAME=VALUE or empty.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { RUN, RUN_FILTERED, RUN_MAPPED, RUNS, CREATE = RUNS, STATE, START, EXEC, KILL, DELETE, DELETE_FORCE, PHASES, UNTIMED = -1 };
static const char *const PHASE_NAMES[] = {
    "run", "run with seccomp", "run, user namespace", "create", "state", "start", "exec", "kill", "delete", "delete --force"};
enum { MOST_CONTENDERS = 16, WARM_UP = 2, TIMEOUT_S = 10, TOO_MANY_FAILURES = 3 };

struct samples {
    double *us;
    int count;
    long rss; // KiB, the most of any sample
};

struct contender {
    const char *name, *path, *env;
    char state_dir[512];
    struct samples phases[PHASES];
    int failures;
};

static struct contender contenders[MOST_CONTENDERS];
static int contender_count, iterations;
static useconds_t gap_us;
static const char *run_bundles[RUNS], *sleep_bundle, *id_prefix;
static volatile sig_atomic_t timed_out;
static int dev_null;

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void on_alarm(int signal) {
    (void)signal;
    timed_out = 1;
}

static void set_timeout(int seconds) {
    timed_out = 0;
    alarm(seconds);
}

// Runs a command of `c` and adds the time from fork to exit to `phase`. Whether it succeeded.
static int timed(struct contender *c, int phase, char *const *args) {
    char *env[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", *c->env ? (char *)c->env : NULL, NULL};
    if (gap_us) usleep(gap_us);
    struct rusage usage;
    int status = 0;
    double begin = now_us();
    pid_t pid = vfork();
    if (pid == 0) {
        dup2(dev_null, 0);
        dup2(dev_null, 1);
        // Stderr stays as it is: it says why.
        execve(c->path, args, env);
        _exit(127);
    }
    set_timeout(TIMEOUT_S);
    // Everything is reaped, since containers are handed to this process and some runtimes wait until they are gone.
    for (pid_t ended = 0; ended != pid;) {
        ended = wait4(-1, &status, 0, &usage);
        if (ended < 0 && timed_out) kill(pid, SIGKILL);
        else if (ended < 0 && errno != EINTR) return 0;
    }
    double us = now_us() - begin;
    alarm(0);
    if (status) {
        fprintf(stderr, "%s: %s ended with status %#x%s\n", c->name, args[3], status, timed_out ? ", timed out" : "");
        c->failures++;
        return 0;
    }
    if (phase != UNTIMED) {
        struct samples *s = &c->phases[phase];
        s->us[s->count++] = us;
        if (usage.ru_maxrss > s->rss) s->rss = usage.ru_maxrss;
    }
    return 1;
}

// `command` with up to three arguments; a null ends them.
static int command(struct contender *c, int phase, const char *command, const char *a, const char *b, const char *d) {
    const char *args[] = {c->path, "--root", c->state_dir, command, a, b, d, NULL};
    return timed(c, phase, (char *const *)args);
}

// Until the container's process is dead and reaped.
static void await_end(void) {
    set_timeout(TIMEOUT_S);
    while (wait4(-1, NULL, 0, NULL) > 0 || (errno == EINTR && !timed_out)) {}
    alarm(0);
}

static void take_turn(struct contender *c, int iteration) {
    int warm = iteration >= WARM_UP;
#define PHASE(phase) (warm ? (phase) : UNTIMED)
    char id[256];
    snprintf(id, sizeof id, "%s-%s-%d", id_prefix, c->name, iteration);
    // The first of them pays for what the turn before has left behind.
    for (int i = 0; i < RUNS; i++) {
        int run = (iteration / 2 + i) % RUNS;
        command(c, PHASE(run), "run", "--bundle", run_bundles[run], id);
    }

    int made = command(c, PHASE(CREATE), "create", "--bundle", sleep_bundle, id);
    made = made && command(c, PHASE(STATE), "state", id, NULL, NULL);
    made = made && command(c, PHASE(START), "start", id, NULL, NULL);
    made = made && command(c, PHASE(EXEC), "exec", id, "true", NULL);
    made = made && command(c, PHASE(KILL), "kill", id, "KILL", NULL);
    if (made) await_end();
    made = made && command(c, PHASE(DELETE), "delete", id, NULL, NULL);
    if (!made) command(c, UNTIMED, "delete", "--force", id, NULL);

    made = command(c, UNTIMED, "create", "--bundle", sleep_bundle, id);
    made = made && command(c, UNTIMED, "start", id, NULL, NULL);
    command(c, made ? PHASE(DELETE_FORCE) : UNTIMED, "delete", "--force", id, NULL);
    await_end();
}

// ---- the report ----

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double at(const struct samples *s, double share) {
    return s->us[(int)((s->count - 1) * share)];
}

static void print_ratio(const struct samples *s, const struct contender *base, int phase) {
    if (!base || !base->phases[phase].count) {
        printf("        -       -");
        return;
    }
    const struct samples *b = &base->phases[phase];
    printf("  %7.2f %7.2f", at(s, 0) / at(b, 0), at(s, 0.5) / at(b, 0.5));
}

static void print_times(const struct contender *crun) {
    printf("%-22s %7s %7s %7s  %15s  %15s  %8s\n", "", "min", "p25", "median", "floor = 1", "crun = 1", "peak RSS");
    printf("%-22s %7s %7s %7s  %7s %7s  %7s %7s  %8s\n", "", "ms", "ms", "ms", "min", "median", "min", "median", "MB");
    for (int phase = 0; phase < PHASES; phase++) {
        printf("%s\n", PHASE_NAMES[phase]);
        for (struct contender *c = contenders; c < contenders + contender_count; c++) {
            const struct samples *s = &c->phases[phase];
            if (!s->count) {
                printf("    %-18s failed\n", c->name);
                continue;
            }
            printf("    %-18s %7.2f %7.2f %7.2f", c->name, at(s, 0) / 1e3, at(s, 0.25) / 1e3, at(s, 0.5) / 1e3);
            print_ratio(s, contenders, phase);
            print_ratio(s, crun, phase);
            printf("  %8.2f\n", s->rss / 1024.0);
        }
    }
}

static void print_mark(const char *figure, const char *mark, double limit, int or_equal, double min, double median) {
    int by_min = min < limit || (or_equal && min == limit), by_median = median < limit || (or_equal && median == limit);
    const char *verdict = by_min && by_median ? "met" : by_min ? "NOT MET by the median"
        : by_median ? "NOT MET by the minimum" : "NOT MET";
    printf("    %-28s %-8s %7.2f %7.2f  %s\n", figure, mark, min, median, verdict);
}

static void print_ratio_mark(int phase, const struct contender *base, const char *mark, double limit, int or_equal) {
    const struct samples *s = &contenders[1].phases[phase];
    char figure[64];
    snprintf(figure, sizeof figure, "%s / %s", PHASE_NAMES[phase], base ? base->name : "crun");
    if (!base || !base->phases[phase].count || !s->count) {
        printf("    %-28s %-8s %7s %7s  not measured\n", figure, mark, "-", "-");
        return;
    }
    const struct samples *b = &base->phases[phase];
    print_mark(figure, mark, limit, or_equal, at(s, 0) / at(b, 0), at(s, 0.5) / at(b, 0.5));
}

// What `phase` takes more than a plain run, turn by turn: the difference of two medians is mostly what else the machine
// did. By run, before the samples are sorted.
static struct samples extra[2][RUNS]; // of the floor and of keel

static void compare_runs(void) {
    for (int c = 0; c < 2; c++) {
        const struct samples *plain = &contenders[c].phases[RUN];
        for (int run = RUN_FILTERED; run < RUNS; run++) {
            const struct samples *other = &contenders[c].phases[run];
            struct samples *more = &extra[c][run];
            more->us = calloc(iterations, sizeof(double));
            if (plain->count != other->count) continue;
            for (int i = 0; i < plain->count; i++) more->us[i] = other->us[i] - plain->us[i];
            more->count = plain->count;
            qsort(more->us, more->count, sizeof(double), compare);
        }
    }
}

static double least_more(const struct contender *c, int run) {
    return (at(&c->phases[run], 0) - at(&c->phases[RUN], 0)) / 1e3;
}

static void print_marks(const struct contender *crun) {
    const struct contender *floor = contenders, *keel = contenders + 1;
    printf("%-32s %-8s %7s %7s\n", "keel's marks", "", "min", "median");
    print_ratio_mark(RUN, floor, "<= 1.5", 1.5, 1);
    print_ratio_mark(RUN, crun, "< 1", 1, 0);
    const struct samples *filter = &extra[1][RUN_FILTERED];
    if (filter->count) {
        print_mark("seccomp in run, ms", "<= 0.35", 0.35, 1, least_more(keel, RUN_FILTERED), at(filter, 0.5) / 1e3);
    }
    const struct samples *mapped = &extra[1][RUN_MAPPED], *least = &extra[0][RUN_MAPPED];
    if (mapped->count) {
        print_mark("user namespace in run, ms", "<= 0.15", 0.15, 1, least_more(keel, RUN_MAPPED), at(mapped, 0.5) / 1e3);
    }
    if (least->count) {
        printf("    %-28s %-8s %7.2f %7.2f\n", "  of that the kernel's own", "", least_more(floor, RUN_MAPPED),
               at(least, 0.5) / 1e3);
    }
    print_ratio_mark(STATE, floor, "< 1.3", 1.3, 0);
    print_ratio_mark(START, floor, "< 1.3", 1.3, 0);
    print_ratio_mark(EXEC, crun, "<= 0.6", 0.6, 1);
    print_ratio_mark(KILL, floor, "< 1.3", 1.3, 0);
    print_ratio_mark(DELETE_FORCE, floor, "< 2", 2, 0);
    long rss = 0;
    for (int phase = 0; phase < PHASES; phase++) {
        if (keel->phases[phase].rss > rss) rss = keel->phases[phase].rss;
    }
    print_mark("peak RSS of any command, MB", "< 3", 3, 0, rss / 1024.0, rss / 1024.0);
    struct stat binary;
    if (!stat(keel->path, &binary)) print_mark("binary, MB", "< 4", 4, 0, binary.st_size / 1e6, binary.st_size / 1e6);
}

int main(int argc, char **argv) {
    if (argc < 15 || (argc - 9) % 3 || (argc - 9) / 3 > MOST_CONTENDERS) return 2;
    iterations = atoi(argv[1]);
    gap_us = atoi(argv[2]);
    for (int run = 0; run < RUNS; run++) run_bundles[run] = argv[3 + run];
    sleep_bundle = argv[6], id_prefix = argv[8];
    const struct contender *crun = NULL;
    for (int i = 9; i < argc; i += 3) {
        struct contender *c = &contenders[contender_count++];
        c->name = argv[i], c->path = argv[i + 1], c->env = argv[i + 2];
        snprintf(c->state_dir, sizeof c->state_dir, "%s/%s", argv[7], c->name);
        mkdir(c->state_dir, 0700);
        for (int phase = 0; phase < PHASES; phase++) c->phases[phase].us = calloc(iterations, sizeof(double));
        if (!strcmp(c->name, "crun")) crun = c;
    }
    dev_null = open("/dev/null", O_RDWR | O_CLOEXEC);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    // No SA_RESTART: it is to interrupt wait4.
    struct sigaction action = {.sa_handler = on_alarm};
    sigaction(SIGALRM, &action, NULL);

    for (int i = 0; i < iterations + WARM_UP; i++) {
        // Each goes first now and then: what a turn leaves behind burdens the next one.
        for (int j = 0; j < contender_count; j++) {
            struct contender *c = &contenders[(i + j) % contender_count];
            if (c->failures < TOO_MANY_FAILURES) take_turn(c, i);
        }
    }

    compare_runs();
    int failed = 0;
    for (struct contender *c = contenders; c < contenders + contender_count; c++) {
        for (int phase = 0; phase < PHASES; phase++) {
            qsort(c->phases[phase].us, c->phases[phase].count, sizeof(double), compare);
        }
        if (c->failures) printf("%s: %d commands failed\n", c->name, c->failures);
        failed |= c->failures && c < contenders + 2;
    }
    print_times(crun);
    printf("\n");
    print_marks(crun);
    return failed;
}
