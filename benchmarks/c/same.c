/* SPDX-License-Identifier: GPL-2.0-or-later */
/* same A B [SAMPLE]: exit status 0 if both files have the same size and read the same; with SAMPLE only so many bytes in
 * the middle of every 1 MiB are compared. Holes that both have are not read. */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

enum { STEP = 1 << 20 };
static char left[STEP], right[STEP];

static off_t next_data(int fd, off_t offset, off_t size)
{
    off_t found = lseek(fd, offset, SEEK_DATA);
    return found < 0 ? size : found;
}

int main(int argc, char **argv)
{
    int a, b;
    off_t size, offset = 0;
    size_t sample;

    if (argc < 3)
        errx(2, "usage: same A B [SAMPLE]");
    sample = argc > 3 ? atoi(argv[3]) : STEP;
    if ((a = open(argv[1], O_RDONLY)) < 0 || (b = open(argv[2], O_RDONLY)) < 0)
        err(2, "open");
    size = lseek(a, 0, SEEK_END);
    if (lseek(b, 0, SEEK_END) != size)
        errx(1, "%s has %lld bytes, %s %lld", argv[1], (long long)size, argv[2], (long long)lseek(b, 0, SEEK_END));
    while (offset < size) {
        off_t data_a = next_data(a, offset, size), data_b = next_data(b, offset, size);
        offset = (data_a < data_b ? data_a : data_b) / STEP * STEP;
        if (offset >= size)
            break;
        memset(left, 0, sample);
        memset(right, 0, sample);
        if (pread(a, left, sample, offset + (STEP - sample) / 2) < 0 ||
            pread(b, right, sample, offset + (STEP - sample) / 2) < 0)
            err(2, "read");
        if (memcmp(left, right, sample))
            errx(1, "%s and %s differ in the 1 MiB at %lld", argv[1], argv[2], (long long)offset);
        offset += STEP;
    }
    return 0;
}
