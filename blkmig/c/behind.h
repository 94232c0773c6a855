/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Blocks waiting to be stored by a thread of their own: a ring between one who puts and one who stores. Nothing is copied
 * from one to the other: the payload changes places with the slot's, be it memory or pages.
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

#include "frame.h"
#include "pages.h"

enum {
    BEHIND_DEPTH = 4,
    /* One that is being stored and one that waits. With more the socket is empty more often than not, and a TCP sender that
     * is not held up sends in small pieces: 2 GiB take 0.24 s with two, 0.28 with three to eight. */
    BEHIND_DEPTH_TCP = 2,
};

struct behind_slot {
    struct pages pages;                 /* the payload, if they hold any; else it is in `own` */
    uint8_t *own;
    int fd;
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

/* With the GIL. After an error behind_free() is due all the same. */
static int behind_init(struct behind *b)
{
    int i;

    pthread_mutex_init(&b->lock, NULL);
    pthread_cond_init(&b->changed, NULL);
    for (i = 0; i < BEHIND_DEPTH; i++)
        if ((b->ring[i].own = io_alloc_pages(FRAME_BLOCK_SIZE)) == NULL)
            return -1;
    return 0;
}

/* With no thread at work. */
static void behind_free(struct behind *b)
{
    int i;

    for (i = 0; i < BEHIND_DEPTH; i++) {
        pages_close(&b->ring[i].pages);
        free(b->ring[i].own);
    }
    pthread_cond_destroy(&b->changed);
    pthread_mutex_destroy(&b->lock);
}

/* Take the block in `pages`, or in *own if they hold none; both change places with empty ones. Waits for a slot, and
 * meanwhile copies pages into memory: from there they are stored in less time than page to page, and a thread that works
 * need not be woken. 2 GiB over a unix socket take 0.19 s that way, 0.22 without. But what comes over TCP leaves little
 * time, and that is the sender's. After behind_close() nothing is taken. */
static int behind_put(struct behind *b, struct pages *pages, uint8_t **own, int fd, int64_t offset, int allocate)
{
    int is_tcp = pages_held(pages) && pages->from_tcp;
    unsigned depth = is_tcp ? BEHIND_DEPTH_TCP : BEHIND_DEPTH;
    struct behind_slot *slot, empty;

    pthread_mutex_lock(&b->lock);
    if (b->put - b->stored >= depth && !b->closed && pages_held(pages) && !is_tcp) {
        pthread_mutex_unlock(&b->lock);
        if (pages_read(pages, *own) < 0)
            return -1;
        pthread_mutex_lock(&b->lock);
    }
    while (b->put - b->stored >= depth && !b->closed)
        pthread_cond_wait(&b->changed, &b->lock);
    if (!b->closed) {
        slot = &b->ring[b->put++ % BEHIND_DEPTH];
        empty = *slot;
        *slot = (struct behind_slot){*pages, *own, fd, offset, allocate};
        *pages = empty.pages;
        *own = empty.own;
        pthread_cond_signal(&b->changed);
    }
    pthread_mutex_unlock(&b->lock);
    return 0;
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
