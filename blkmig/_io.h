/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * System calls under names that say what they are used for; none loops, all leave errno.
 */
#ifndef BLKMIG_IO_H
#define BLKMIG_IO_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ              /* Linux 5.14, glibc 2.35 */
#define MADV_POPULATE_READ 22
#endif

enum { SPEAKS_SOCKET, SPEAKS_PIPE, SPEAKS_FILE };

/* What `fd` is, -1 with errno if it is nothing. A pipe is whatever may make the caller wait. */
static int io_kind(int fd)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        return -1;
    if (S_ISSOCK(st.st_mode))
        return SPEAKS_SOCKET;
    return S_ISREG(st.st_mode) || S_ISBLK(st.st_mode) ? SPEAKS_FILE : SPEAKS_PIPE;
}

/* writev() whose broken pipe is EPIPE and never SIGPIPE, whatever the process does with the signal. */
static ssize_t io_write_pipe(int fd, const struct iovec *iov, int n)
{
    static const struct timespec now = {0, 0};
    sigset_t pipe_set, pending, old;
    ssize_t put;
    int error;

    sigemptyset(&pipe_set);
    sigaddset(&pipe_set, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe_set, &old);
    put = writev(fd, iov, n);
    error = errno;
    if (put < 0 && error == EPIPE && !sigismember(&old, SIGPIPE) && sigpending(&pending) == 0 &&
        sigismember(&pending, SIGPIPE))
        while (sigtimedwait(&pipe_set, NULL, &now) < 0 && errno == EINTR)
            ;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    errno = error;
    return put;
}

static ssize_t io_write(int fd, int kind, struct iovec *iov, int n)
{
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = n};

    if (kind == SPEAKS_SOCKET)
        return sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
    return kind == SPEAKS_PIPE ? io_write_pipe(fd, iov, n) : writev(fd, iov, n);
}

static ssize_t io_read(int fd, int kind, struct iovec *iov, int n)
{
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = n};

    return kind == SPEAKS_SOCKET ? recvmsg(fd, &msg, MSG_DONTWAIT) : readv(fd, iov, n);
}

/* Wait until `fd` is ready or broken: 0; until `wake_fd` is: ECANCELED; -1 with errno. */
static int io_wait(int fd, int wake_fd, int output)
{
    struct pollfd fds[2] = {{fd, output ? POLLOUT : POLLIN, 0}, {wake_fd, POLLIN, 0}};

    if (poll(fds, 2, -1) < 0)
        return -1;
    return fds[1].revents ? ECANCELED : 0;
}

static ssize_t io_pread(int fd, void *p, size_t n, int64_t offset)
{
    return pread(fd, p, n, offset);
}

static ssize_t io_pwrite(int fd, const void *p, size_t n, int64_t offset)
{
    return pwrite(fd, p, n, offset);
}

static int io_punch_hole(int fd, int64_t offset, int64_t n)
{
    return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, n);
}

static int io_zero_range(int fd, int64_t offset, int64_t n)
{
    return fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, n);
}

static int io_zero_out(int fd, uint64_t offset, uint64_t n)
{
    uint64_t range[2] = {offset, n};

    return ioctl(fd, BLKZEROOUT, range);
}

static int64_t io_seek_data(int fd, int64_t offset)
{
    return lseek(fd, offset, SEEK_DATA);
}

static int64_t io_seek_hole(int fd, int64_t offset)
{
    return lseek(fd, offset, SEEK_HOLE);
}

static void *io_map(int fd, size_t n)
{
    void *base = mmap(NULL, n, PROT_READ, MAP_SHARED, fd, 0);

    return base == MAP_FAILED ? NULL : base;
}

static void io_unmap(void *base, size_t n)
{
    munmap(base, n);
}

/* Make the pages of [p, p + n) present without touching them: errors come back as errno, not as SIGBUS. */
static int io_populate(uint8_t *p, size_t n)
{
    size_t slack = (uintptr_t)p & (uintptr_t)(sysconf(_SC_PAGESIZE) - 1);

    return madvise(p - slack, n + slack, MADV_POPULATE_READ);
}

/* Zeroed and resident memory, page aligned, for free(). */
static void *io_alloc_pages(size_t n)
{
    void *p;

    if (posix_memalign(&p, sysconf(_SC_PAGESIZE), n) != 0)
        return NULL;
    return memset(p, 0, n);
}

#endif
