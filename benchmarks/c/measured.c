/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Run a command and write what it cost: measured OUT COMMAND...  ->  "wall cpu rss_bytes" in the file OUT.
 *
 * A small process in between, because the kernel says of a child that it used at least the memory of its parent before
 * it started (exec keeps the old peak). SIGTERM and SIGINT go on to the command; its exit status is kept, save that a
 * command ended by a SIGTERM that came from here counts as done. */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile pid_t child;
static volatile int ended;

static void pass_on(int number)
{
    ended = 1;
    if (child > 0)
        kill(child, number);
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    struct sigaction action = { .sa_handler = pass_on };
    struct rusage usage;
    double start = seconds();
    int status;
    FILE *out;

    if (argc < 3)
        errx(2, "usage: measured OUT COMMAND...");
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if ((child = fork()) == 0) {
        signal(SIGTERM, SIG_DFL);
        signal(SIGINT, SIG_DFL);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execvp(argv[2], argv + 2);
        err(127, "%s", argv[2]);
    }
    while (wait4(child, &status, 0, &usage) < 0)
        if (errno != EINTR)
            err(1, "wait4");
    if (!(out = fopen(argv[1], "w")))
        err(1, "%s", argv[1]);
    fprintf(out, "%.6f %.6f %ld\n", seconds() - start,
            usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6,
            usage.ru_maxrss * 1024);
    if (fclose(out))
        err(1, "%s", argv[1]);
    if (WIFSIGNALED(status))
        return ended ? 0 : 128 + WTERMSIG(status);
    return WEXITSTATUS(status);
}
