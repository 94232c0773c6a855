/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The clock that idle times and steps of a migration are measured with.
 */
#ifndef BLKMIG_CLOCK_H
#define BLKMIG_CLOCK_H

#include <time.h>

static double io_seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

#endif
