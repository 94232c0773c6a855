/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which process this is, at the price of a load: a child counts one more than its parent. Whatever notes the count when it
 * is made can tell whether it was made here, and so whether its threads, its trackers and its place in a stream are here.
 */
#ifndef BLKMIG_FORK_H
#define BLKMIG_FORK_H

#include <pthread.h>

static unsigned fork_count;

static void fork_in_child(void)
{
    fork_count++;
}

/* Once. Not for a vfork(): its child does nothing but exec. */
static void fork_watch(void)
{
    pthread_atfork(NULL, NULL, fork_in_child);
}

#endif
