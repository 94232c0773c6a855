/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How a process ends that has files open on a file system which answers no more. Whoever closes such a file waits for the
 * file system, and the end of a process closes its files: the last of those that have them, where several share them. So
 * a child that shares them stays behind, and waits in its place.
 *
 *     process    clone(CLONE_FILES) ── _exit: the files are the child's, too, so nothing is closed
 *     child      closes `fds`, the first ones ── waits until the process has gone ── closes the others of `fds`
 *                ── ends, which closes the rest: may hang
 *
 * The locks of a file go with its last descriptor. Those on other file systems must not wait for the one that hangs, and
 * at the end of a process they would: it lets no file go before it has closed all of them. So they are in `fds`.
 *
 * Gone is the process when all of its threads have: each of them has the files, and lets them go on its own way to the
 * end. The one that made the child may be through when another one is not. Of the whole process a pidfd tells.
 *
 * The child does nothing but system calls: threads of the process may have held any lock when it was made.
 */
#ifndef BLKMIG_LEAVING_H
#define BLKMIG_LEAVING_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

static void leaving_child(pid_t parent, const int* fds, size_t count, size_t first)
{
    struct timespec pause = {0, 1000000};
    struct flock none = {.l_type = F_UNLCK, .l_whence = SEEK_SET};
    sigset_t all;

    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    for (size_t i = 0; i < first; i++)
        close(fds[i]);
    struct pollfd gone = {(int)syscall(SYS_pidfd_open, parent, 0), POLLIN, 0};
    if (gone.fd >= 0)
        while (poll(&gone, 1, -1) < 1)
            ;
    else /* Linux before 5.3: the threads of the process have a moment for the rest */
        while (syscall(SYS_getppid) == parent)
            nanosleep(&pause, NULL);
    for (size_t i = first; i < count; i++) {
        /* A mapping keeps the file, and so its locks, to the end. What was inherited has the locks of others, too. */
        if (fcntl(fds[i], F_GETFD) & FD_CLOEXEC)
            fcntl(fds[i], F_OFD_SETLK, &none);
        close(fds[i]);
    }
    _exit(0);
}

/* Leaves them to a child, which closes `first` of the `count` descriptors before the process ends. Returns the child's
 * number, or -1 with errno. */
static long leaving_files(const int* fds, size_t count, size_t first)
{
    pid_t parent = getpid();
#ifdef __s390__
    long child = syscall(SYS_clone, 0, CLONE_FILES | SIGCHLD, 0, 0, 0);
#else
    long child = syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0);
#endif

    if (!child)
        leaving_child(parent, fds, count, first);
    return child;
}

#endif
