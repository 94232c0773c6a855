/* SPDX-License-Identifier: GPL-2.0-or-later */
/* All-C loops of the shape of a migration, to see what the machine gives: one thread a side, 1 MiB blocks, the records
 * of the block section's wire format, zero blocks as runs of records without payload.
 *
 *   pump send DESIGN FILE LINK          pump receive DESIGN FILE LINK
 *
 * LINK: tcp:PORT (the receiver listens on 127.0.0.1), unix:PATH, fd:N.  The receiver prints "ready" when it listens.
 * DESIGN of the sender:   pread   preadv the block, scan it, send [header][block]
 *                         map     pread 4 KiB to decide, populate the mapping, send [header][mapped block]
 *                         sendfile, splice   no scan of data, the kernel moves the pages
 * DESIGN of the receiver: waitall recvmsg(MSG_WAITALL) of [payload][next 8 bytes], one pwrite, holes are punched
 *                         fresh   the same, but zero runs are skipped: the target is new
 *                         readv   readv of [payload][staging], as much as there is
 *                         splice  socket or pipe -> pipe -> file
 *                         null    waitall without the pwrite
 * Environment: PUMP_BUFFER=bytes sets SO_SNDBUF/SO_RCVBUF or the pipe's size; PUMP_LOWAT=bytes lets a TCP receiver sleep
 * until so much has come; PUMP_WRITEBACK=bytes starts writeback whenever so many bytes were written. */
#define _GNU_SOURCE
#include <endian.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

enum { BLOCK = 1 << 20, SECTORS = BLOCK / 512, NAME_LEN = 6, HEADER = 9 + NAME_LEN, STAGING = 64 << 10 };
enum { DEVICE_BLOCK = 1, EOS = 2, ZERO_BLOCK = 8 };
static const char NAME[] = "drive0";
static char *block;
static int is_pipe;

static long environment(const char *name)
{
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

/* ---- links ---- */

static void tune(int fd)
{
    int one = 1, domain = 0, size = environment("PUMP_BUFFER"), lowat = environment("PUMP_LOWAT");
    socklen_t length = sizeof domain;
    is_pipe = fcntl(fd, F_GETPIPE_SZ) > 0;
    getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length);
    if (domain == AF_UNIX && !size)
        size = 2 << 20; /* the default halves the throughput */
    if (domain == AF_INET) { /* as blkmig does it: no pacing on the loopback */
        setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4);
        if (lowat)
            setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &lowat, sizeof lowat);
    }
    if (is_pipe)
        fcntl(fd, F_SETPIPE_SZ, size ? size : 1 << 20);
    else if (size) {
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static int open_link(const char *link, int listening)
{
    union { struct sockaddr any; struct sockaddr_in in; struct sockaddr_un un; } address = {0};
    socklen_t length;
    int one = 1, fd, peer;

    if (!strncmp(link, "fd:", 3)) {
        if (listening)
            puts("ready"), fflush(stdout);
        fd = atoi(link + 3);
        tune(fd);
        return fd;
    }
    if (!strncmp(link, "tcp:", 4)) {
        address.in.sin_family = AF_INET;
        address.in.sin_port = htons(atoi(link + 4));
        address.in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        length = sizeof address.in;
    } else {
        address.un.sun_family = AF_UNIX;
        strncpy(address.un.sun_path, link + 5, sizeof address.un.sun_path - 1);
        length = sizeof address.un;
    }
    fd = socket(address.any.sa_family, SOCK_STREAM, 0);
    tune(fd);
    if (!listening) {
        if (connect(fd, &address.any, length) < 0)
            err(1, "connect %s", link);
        return fd;
    }
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, &address.any, length) < 0 || listen(fd, 1) < 0)
        err(1, "listen %s", link);
    puts("ready");
    fflush(stdout);
    if ((peer = accept(fd, NULL, NULL)) < 0)
        err(1, "accept");
    tune(peer);
    return peer;
}

/* ---- sender ---- */

static int is_zero(const void *buffer, size_t length)
{
    const uint64_t *word = buffer;
    for (size_t i = 0; i < length / 8; i += 32) {
        uint64_t all = 0;
        for (int j = 0; j < 32; j++)
            all |= word[i + j];
        if (all)
            return 0;
    }
    return 1;
}

static void send_all(int fd, struct iovec *iov, int count, int more)
{
    while (count) {
        struct msghdr message = { .msg_iov = iov, .msg_iovlen = count };
        ssize_t done = is_pipe ? writev(fd, iov, count) : sendmsg(fd, &message, MSG_NOSIGNAL | (more ? MSG_MORE : 0));
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            err(1, "send");
        for (; count && (size_t)done >= iov->iov_len; iov++, count--)
            done -= iov->iov_len;
        if (count) {
            iov->iov_base = (char *)iov->iov_base + done;
            iov->iov_len -= done;
        }
    }
}

static void put_be64(char *buffer, uint64_t value)
{
    value = htobe64(value);
    memcpy(buffer, &value, 8);
}

static int put_header(char *buffer, int64_t index, int flags)
{
    put_be64(buffer, (uint64_t)index * SECTORS << 9 | flags);
    buffer[8] = NAME_LEN;
    memcpy(buffer + 9, NAME, NAME_LEN);
    return HEADER;
}

static char staged[STAGING];
static size_t staged_len;

static void flush_staged(int fd, char *payload, size_t length, int more)
{
    struct iovec iov[2] = { { staged, staged_len }, { payload, length } };
    send_all(fd, iov, length ? 2 : 1, more);
    staged_len = 0;
}

static void stage(int fd, int64_t index, int flags)
{
    if (staged_len + HEADER > STAGING)
        flush_staged(fd, NULL, 0, 0);
    staged_len += put_header(staged + staged_len, index, flags);
}

static void move_pages(int use_splice, int file, int fd, int64_t index)
{
    loff_t offset = index * BLOCK;
    size_t rest = BLOCK;
    flush_staged(fd, NULL, 0, 1);
    while (rest) {
        ssize_t done = use_splice ? splice(file, &offset, fd, NULL, rest, SPLICE_F_MORE) : sendfile(fd, file, &offset, rest);
        if (done <= 0)
            err(1, "sendfile");
        rest -= done;
    }
}

static void read_block(int file, int64_t index)
{
    for (size_t done = 0; done < BLOCK;) {
        ssize_t n = pread(file, block + done, BLOCK - done, index * BLOCK + done);
        if (n < 0)
            err(1, "pread");
        if (!n) {
            memset(block + done, 0, BLOCK - done);
            return;
        }
        done += n;
    }
}

/* Return the payload of a block, NULL if it is all zeros. */
static char *find_payload(const char *design, int file, char *map, int64_t index)
{
    if (map) {
        if (pread(file, block, 4096, index * BLOCK) != 4096)
            err(1, "pread");
        if (!is_zero(block, 4096)) {
            if (madvise(map + index * BLOCK, BLOCK, MADV_POPULATE_READ) < 0)
                err(1, "populate");
            return map + index * BLOCK;
        }
    } else if (design[0] == 's')
        return block;
    read_block(file, index);
    return is_zero(block, BLOCK) ? NULL : block;
}

static void send_file(const char *design, int file, int fd)
{
    int64_t size = lseek(file, 0, SEEK_END), blocks = size / BLOCK, data = 0, hole = 0;
    char *map = NULL, *payload;
    if (!strcmp(design, "map") && (map = mmap(NULL, size, PROT_READ, MAP_SHARED, file, 0)) == MAP_FAILED)
        err(1, "mmap");
    for (int64_t index = 0; index < blocks; index++) {
        if (index * BLOCK >= hole) { /* the extent [data, hole) lies behind: find the next one */
            data = lseek(file, index * BLOCK, SEEK_DATA);
            data = data < 0 ? size : data;
            hole = data < size ? lseek(file, data, SEEK_HOLE) : size + 1;
        }
        if ((index + 1) * BLOCK <= data || !(payload = find_payload(design, file, map, index)))
            stage(fd, index, DEVICE_BLOCK | ZERO_BLOCK);
        else {
            stage(fd, index, DEVICE_BLOCK);
            if (design[0] == 's')
                move_pages(design[1] == 'p', file, fd, index);
            else
                flush_staged(fd, payload, BLOCK, 0);
            if (map) /* mapped pages count as this process's memory */
                madvise(map + index * BLOCK, BLOCK, MADV_DONTNEED);
        }
    }
    if (staged_len + 8 > STAGING)
        flush_staged(fd, NULL, 0, 0);
    put_be64(staged + staged_len, EOS);
    staged_len += 8;
    flush_staged(fd, NULL, 0, 0);
}

/* ---- receiver ---- */

static size_t position;

static void fill(int fd, size_t need)
{
    memmove(staged, staged + position, staged_len - position);
    staged_len -= position;
    position = 0;
    while (staged_len < need) {
        ssize_t n = read(fd, staged + staged_len, STAGING - staged_len);
        if (n <= 0)
            err(1, "read: %zd", n);
        staged_len += n;
    }
}

static uint64_t get_be64(int fd)
{
    uint64_t value;
    if (staged_len - position < 8)
        fill(fd, 8);
    memcpy(&value, staged + position, 8);
    position += 8;
    return be64toh(value);
}

static void get_name(int fd)
{
    if (staged_len - position < 1 + NAME_LEN)
        fill(fd, 1 + NAME_LEN);
    if (staged[position] != NAME_LEN || memcmp(staged + position + 1, NAME, NAME_LEN))
        errx(1, "bad name");
    position += 1 + NAME_LEN;
}

/* Read the rest of a payload, and what comes behind it into the staging buffer. */
static void get_block(int fd, int waitall)
{
    size_t done = staged_len - position < BLOCK ? staged_len - position : BLOCK;
    memcpy(block, staged + position, done);
    position += done;
    if (done == BLOCK)
        return;
    position = staged_len = 0;
    while (done < BLOCK) {
        struct iovec iov[2] = { { block + done, BLOCK - done }, { staged, waitall ? 8 : 4096 } };
        struct msghdr message = { .msg_iov = iov, .msg_iovlen = 2 };
        ssize_t n = is_pipe || !waitall ? readv(fd, iov, 2) : recvmsg(fd, &message, MSG_WAITALL);
        if (n <= 0)
            err(1, "read payload");
        staged_len = (size_t)n > BLOCK - done ? n - (BLOCK - done) : 0;
        done += n - staged_len;
    }
}

static void splice_block(int fd, int file, loff_t offset, int *pipe_fds)
{
    size_t rest = BLOCK, staged_rest = staged_len - position;
    if (staged_rest > rest)
        staged_rest = rest;
    if (pwrite(file, staged + position, staged_rest, offset) != (ssize_t)staged_rest)
        err(1, "pwrite");
    position += staged_rest;
    offset += staged_rest;
    rest -= staged_rest;
    while (rest) {
        ssize_t n = is_pipe ? splice(fd, NULL, file, &offset, rest, SPLICE_F_MOVE)
                            : splice(fd, NULL, pipe_fds[1], NULL, rest, SPLICE_F_MOVE);
        if (n <= 0)
            err(1, "splice");
        rest -= n;
        while (!is_pipe && n) {
            ssize_t out = splice(pipe_fds[0], NULL, file, &offset, n, SPLICE_F_MOVE);
            if (out <= 0)
                err(1, "splice to the file");
            n -= out;
        }
    }
}

static void end_zero_run(const char *design, int file, int64_t start, int64_t end)
{
    if (start < end && strcmp(design, "fresh") && design[0] != 'n' &&
        fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, start, end - start) < 0)
        err(1, "punch");
}

static void store(const char *design, int file, int64_t offset)
{
    static int64_t written, started;
    long step = environment("PUMP_WRITEBACK");
    if (design[0] != 'n' && pwrite(file, block, BLOCK, offset) != BLOCK)
        err(1, "pwrite");
    written = offset + BLOCK;
    if (step && written - started >= step) {
        sync_file_range(file, started, written - started, SYNC_FILE_RANGE_WRITE);
        started = written;
    }
}

static void receive_file(const char *design, int file, int fd)
{
    int64_t zero_start = 0, zero_end = 0;
    int pipe_fds[2];
    if (pipe(pipe_fds) || fcntl(pipe_fds[0], F_SETPIPE_SZ, 1 << 20) < 0)
        err(1, "pipe");
    for (;;) {
        uint64_t word = get_be64(fd);
        int64_t offset = word >> 9 << 9;
        if (!(word & DEVICE_BLOCK))
            break;
        get_name(fd);
        if (!(word & ZERO_BLOCK)) {
            if (design[0] == 's')
                splice_block(fd, file, offset, pipe_fds);
            else {
                get_block(fd, design[0] != 'r');
                store(design, file, offset);
            }
        } else if (offset == zero_end)
            zero_end += BLOCK;
        else {
            end_zero_run(design, file, zero_start, zero_end);
            zero_start = offset;
            zero_end = offset + BLOCK;
        }
    }
    end_zero_run(design, file, zero_start, zero_end);
}

int main(int argc, char **argv)
{
    int sending, file;
    if (argc != 5)
        errx(2, "usage: pump send|receive DESIGN FILE LINK");
    sending = !strcmp(argv[1], "send");
    block = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED || (file = open(argv[3], sending ? O_RDONLY : O_RDWR | O_CREAT, 0666)) < 0)
        err(1, "%s", argv[3]);
    if (sending)
        send_file(argv[2], file, open_link(argv[4], 0));
    else
        receive_file(argv[2], file, open_link(argv[4], 1));
    return close(file) ? 1 : 0;
}
