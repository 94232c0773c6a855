/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Fails one chosen system call of a process, once. To be preloaded (LD_PRELOAD); see failing_calls.py.
 *
 * Nothing happens until failing_calls_arm() is called. From then on the calls of each name are counted, and number
 * `nth` (from 1) of the calls named `name` fails with `error`. nth = 0 only counts. close() closes nevertheless, as the
 * kernel does; everything else is not done at all.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>

enum { MOST = 64 };

static atomic_int armed;
static const char *chosen_name = "";
static long chosen_nth;
static int chosen_error;
static struct counter { const char *name; atomic_long calls; } counters[MOST];
static atomic_int counter_count;

void failing_calls_arm(const char *name, long nth, int error)
{
    chosen_name = strdup(name);
    chosen_nth = nth;
    chosen_error = error;
    atomic_store(&armed, 1);
}

/* Write "name count" lines of what was called since it was armed. */
void failing_calls_report(const char *path)
{
    atomic_store(&armed, 0);
    FILE *file = fopen(path, "w");
    if (!file)
        return;
    for (int i = 0; i < atomic_load(&counter_count); i++)
        fprintf(file, "%s %ld\n", counters[i].name, atomic_load(&counters[i].calls));
    fclose(file);
}

static int fails(struct counter **counter, const char *name)
{
    if (!atomic_load_explicit(&armed, memory_order_relaxed))
        return 0;
    if (!*counter) { /* two threads may take two counters for one name: the report then has it twice */
        struct counter *mine = &counters[atomic_fetch_add(&counter_count, 1)];
        mine->name = name;
        *counter = mine;
    }
    long number = atomic_fetch_add(&(*counter)->calls, 1) + 1;
    if (number != chosen_nth || strcmp(name, chosen_name))
        return 0;
    errno = chosen_error;
    return 1;
}

#define REAL(name, type) \
    static struct counter *counter; \
    static __typeof__(type) *real; \
    if (!real) \
        real = (__typeof__(type) *)dlsym(RTLD_NEXT, #name)

#define CALL(result, name, parameters, arguments) \
    result name parameters \
    { \
        REAL(name, result parameters); \
        return fails(&counter, #name) ? (result)-1 : real arguments; \
    }

typedef off64_t off;
CALL(ssize_t, read, (int fd, void *buf, size_t n), (fd, buf, n))
CALL(ssize_t, write, (int fd, const void *buf, size_t n), (fd, buf, n))
CALL(ssize_t, readv, (int fd, const struct iovec *v, int n), (fd, v, n))
CALL(ssize_t, writev, (int fd, const struct iovec *v, int n), (fd, v, n))
CALL(ssize_t, pread64, (int fd, void *buf, size_t n, off at), (fd, buf, n, at))
CALL(ssize_t, pwrite64, (int fd, const void *buf, size_t n, off at), (fd, buf, n, at))
CALL(ssize_t, preadv64, (int fd, const struct iovec *v, int n, off at), (fd, v, n, at))
CALL(ssize_t, pwritev64, (int fd, const struct iovec *v, int n, off at), (fd, v, n, at))
CALL(ssize_t, preadv64v2, (int fd, const struct iovec *v, int n, off at, int f), (fd, v, n, at, f))
CALL(ssize_t, pwritev64v2, (int fd, const struct iovec *v, int n, off at, int f), (fd, v, n, at, f))
CALL(ssize_t, sendfile64, (int out, int in, off *at, size_t n), (out, in, at, n))
CALL(ssize_t, splice, (int in, off *i, int out, off *o, size_t n, unsigned f), (in, i, out, o, n, f))
CALL(ssize_t, sendmsg, (int fd, const struct msghdr *m, int f), (fd, m, f))
CALL(ssize_t, recvmsg, (int fd, struct msghdr *m, int f), (fd, m, f))
CALL(ssize_t, send, (int fd, const void *buf, size_t n, int f), (fd, buf, n, f))
CALL(ssize_t, recv, (int fd, void *buf, size_t n, int f), (fd, buf, n, f))
CALL(int, socket, (int a, int b, int c), (a, b, c))
CALL(int, socketpair, (int a, int b, int c, int fds[2]), (a, b, c, fds))
CALL(int, bind, (int fd, const struct sockaddr *a, socklen_t n), (fd, a, n))
CALL(int, listen, (int fd, int n), (fd, n))
CALL(int, connect, (int fd, const struct sockaddr *a, socklen_t n), (fd, a, n))
CALL(int, accept4, (int fd, struct sockaddr *a, socklen_t *n, int f), (fd, a, n, f))
CALL(int, shutdown, (int fd, int how), (fd, how))
CALL(int, getsockopt, (int fd, int l, int o, void *v, socklen_t *n), (fd, l, o, v, n))
CALL(int, setsockopt, (int fd, int l, int o, const void *v, socklen_t n), (fd, l, o, v, n))
CALL(int, poll, (struct pollfd *fds, nfds_t n, int ms), (fds, n, ms))
CALL(int, ppoll, (struct pollfd *fds, nfds_t n, const struct timespec *t, const sigset_t *s), (fds, n, t, s))
CALL(int, pipe2, (int fds[2], int f), (fds, f))
CALL(int, eventfd, (unsigned n, int f), (n, f))
CALL(int, eventfd_write, (int fd, unsigned long n), (fd, n))
CALL(int, fsync, (int fd), (fd))
CALL(int, fdatasync, (int fd), (fd))
CALL(int, ftruncate64, (int fd, off n), (fd, n))
CALL(int, fallocate64, (int fd, int mode, off at, off n), (fd, mode, at, n))
CALL(int, sync_file_range, (int fd, off at, off n, unsigned f), (fd, at, n, f))
CALL(off, lseek64, (int fd, off at, int whence), (fd, at, whence))
CALL(int, fstat64, (int fd, struct stat64 *s), (fd, s))
CALL(int, stat64, (const char *p, struct stat64 *s), (p, s))
CALL(int, lstat64, (const char *p, struct stat64 *s), (p, s))
CALL(int, fstatat64, (int d, const char *p, struct stat64 *s, int f), (d, p, s, f))
CALL(int, rename, (const char *a, const char *b), (a, b))
CALL(int, renameat, (int d, const char *a, int e, const char *b), (d, a, e, b))
CALL(int, renameat2, (int d, const char *a, int e, const char *b, unsigned f), (d, a, e, b, f))
CALL(int, link, (const char *a, const char *b), (a, b))
CALL(int, linkat, (int d, const char *a, int e, const char *b, int f), (d, a, e, b, f))
CALL(int, unlink, (const char *p), (p))
CALL(int, unlinkat, (int d, const char *p, int f), (d, p, f))
CALL(int, mkdir, (const char *p, mode_t m), (p, m))
CALL(int, madvise, (void *p, size_t n, int a), (p, n, a))

/* Mappings of files only: what the interpreter does without memory of its own is not ours to mend. */
void *mmap64(void *p, size_t n, int prot, int flags, int fd, off at)
{
    REAL(mmap64, void *(void *, size_t, int, int, int, off));
    return fd >= 0 && fails(&counter, "mmap64") ? MAP_FAILED : real(p, n, prot, flags, fd, at);
}

int close(int fd)
{
    REAL(close, int(int));
    int has_failed = fails(&counter, "close"), error = errno, rc = real(fd);
    if (!has_failed)
        return rc;
    errno = error;
    return -1;
}

#define VARIADIC(name, first_type) \
    int name(first_type first, int second, ...) \
    { \
        REAL(name, int(first_type, int, ...)); \
        va_list rest; \
        va_start(rest, second); \
        void *third = va_arg(rest, void *); \
        va_end(rest); \
        return fails(&counter, #name) ? -1 : real(first, second, third); \
    }
VARIADIC(open64, const char *)
VARIADIC(fcntl64, int)

int ioctl(int fd, unsigned long request, ...)
{
    REAL(ioctl, int(int, unsigned long, ...));
    va_list rest;
    va_start(rest, request);
    void *third = va_arg(rest, void *);
    va_end(rest);
    return fails(&counter, "ioctl") ? -1 : real(fd, request, third);
}

int openat64(int folder, const char *path, int flags, ...)
{
    REAL(openat64, int(int, const char *, int, ...));
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    return fails(&counter, "openat64") ? -1 : real(folder, path, flags, mode);
}
