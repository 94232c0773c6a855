/* SPDX-License-Identifier: GPL-2.0-or-later */
/* copyrange SOURCE TARGET: copy_file_range of the whole file, in one thread: what a local copy costs at least. */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    int in, out;
    ssize_t done;

    if (argc != 3)
        errx(2, "usage: copyrange SOURCE TARGET");
    if ((in = open(argv[1], O_RDONLY)) < 0 || (out = open(argv[2], O_WRONLY | O_CREAT, 0666)) < 0)
        err(1, "open");
    do
        if ((done = copy_file_range(in, NULL, out, NULL, 1 << 30, 0)) < 0)
            err(1, "copy_file_range");
    while (done);
    return 0;
}
