/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Blocks that came as pages, waiting to be stored by a thread of their own: a ring between one who puts and one who
 * stores.
 *
 *     ring     | being stored | waiting |            blocks `stored` to `put`, modulo the depth
 *
 * Under `lock`: all but the slots. The slot of block `stored` is the storing thread's while there is one, the slot of
 * block `put` the other's; so neither holds the lock for what takes time. Both sleep on `changed`, never at once: one
 * for want of blocks, the other for want of slots. Who puts and drains is one thread at a time: see behind.py.
 */
#ifndef BLKMIG_BEHIND_H
#define BLKMIG_BEHIND_H

#include <pthread.h>

#include "_pages.h"

enum {
    /* One that is being stored and one that waits. With more the socket is empty more often than not, and a sender that is
     * not held up sends in small pieces: 2 GiB over TCP took 0.29 s with two, 0.32 with four, 0.39 with eight. */
    BEHIND_DEPTH = 2,
};

struct behind_slot {
    struct pages pages;
    int64_t offset;
    int allocate;
};

struct behind {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned put, stored;               /* blocks since the beginning */
    int closed;                         /* what is not stored will not be */
    struct behind_slot ring[BEHIND_DEPTH];
};

static void behind_init(struct behind *b)
{
    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->changed, NULL);
}

/* With no thread at work. */
static void behind_free(struct behind *b)
{
    int i;

    for (i = 0; i < BEHIND_DEPTH; i++)
        pages_close(&b->ring[i].pages);
    pthread_cond_destroy(&b->changed);
    pthread_mutex_destroy(&b->lock);
}

/* Take the block in `pages`, which become empty ones. Waits for a slot. After behind_close() it does nothing. */
static void behind_put(struct behind *b, struct pages *pages, int64_t offset, int allocate)
{
    struct behind_slot *slot;
    struct pages empty;

    pthread_mutex_lock(&b->lock);
    while (b->put - b->stored == BEHIND_DEPTH && !b->closed)
        pthread_cond_wait(&b->changed, &b->lock);
    if (!b->closed) {
        slot = &b->ring[b->put++ % BEHIND_DEPTH];
        empty = slot->pages;
        *slot = (struct behind_slot){*pages, offset, allocate};
        *pages = empty;
        pthread_cond_signal(&b->changed);
    }
    pthread_mutex_unlock(&b->lock);
}

/* Wait until all is stored, or nothing more will be. */
static void behind_drain(struct behind *b)
{
    pthread_mutex_lock(&b->lock);
    while (b->put != b->stored && !b->closed)
        pthread_cond_wait(&b->changed, &b->lock);
    pthread_mutex_unlock(&b->lock);
}

static void behind_close(struct behind *b)
{
    pthread_mutex_lock(&b->lock);
    b->closed = 1;
    pthread_cond_broadcast(&b->changed);
    pthread_mutex_unlock(&b->lock);
}

/* The storing thread: the block before is stored, if there was one; wait for the next. NULL after behind_close(). */
static struct behind_slot *behind_next(struct behind *b, int was_stored)
{
    struct behind_slot *slot;

    pthread_mutex_lock(&b->lock);
    b->stored += was_stored;
    if (was_stored)
        pthread_cond_signal(&b->changed);
    while (b->put == b->stored && !b->closed)
        pthread_cond_wait(&b->changed, &b->lock);
    slot = b->closed ? NULL : &b->ring[b->stored % BEHIND_DEPTH];
    pthread_mutex_unlock(&b->lock);
    return slot;
}

#endif
