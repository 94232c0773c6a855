/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Records of the block section, in memory:
 *
 *     | be64: sector << 9 | flags | u8: n | name, n bytes | payload, 1 MiB |
 *                                 '--- DEVICE_BLOCK only --'-- not ZERO --'
 */
#ifndef BLKMIG_FRAME_H
#define BLKMIG_FRAME_H

#include "contract.h"

/* Numbers of 1, 2, 4 or 8 bytes. */
static inline void frame_put_number(uint8_t *p, uint64_t value, size_t n)
{
    while (n--) {
        p[n] = (uint8_t)value;
        value >>= 8;
    }
}

static inline uint64_t frame_get_number(const uint8_t *p, size_t n)
{
    uint64_t value = 0;

    while (n--)
        value = value << 8 | *p++;
    return value;
}

/* Write a record's head; its length. */
static inline size_t frame_head(uint8_t *p, uint64_t word, const char *name, size_t length)
{
    blkmig_store_be64(p, word);
    p[8] = (uint8_t)length;
    memcpy(p + 9, name, length);
    return 9 + length;
}

static void frame_zero_records(uint8_t *p, uint64_t word, size_t count, const char *name, size_t length)
{
    word |= BLKMIG_DEVICE_BLOCK | BLKMIG_ZERO_BLOCK;
    for (; count; count--, word += BLKMIG_BLOCK_SIZE)
        p += frame_head(p, word, name, length);
}

struct frame_run {
    uint64_t word;                      /* of the first record */
    size_t count;                       /* records */
    const char *name;
    size_t length;                      /* of the name */
    size_t nbytes;                      /* of the run in the stream; 0: its first record is not complete */
};

/* Read the record at p, and the zero records behind it that continue it, of n bytes. */
static struct frame_run frame_parse(const uint8_t *p, size_t n)
{
    struct frame_run run = {0, 1, (const char *)p, 0, 0};
    uint64_t word;
    size_t step;

    if (n < 8)
        return run;
    run.word = word = blkmig_load_be64(p);
    if (!(word & BLKMIG_DEVICE_BLOCK)) { /* bit 0 comes first, whatever else is set */
        run.nbytes = 8;
        return run;
    }
    if (n < 9 || n < 9 + (size_t)p[8])
        return run;
    run.name = (const char *)p + 9;
    run.length = p[8];
    run.nbytes = step = 9 + run.length;
    if (!(word & BLKMIG_ZERO_BLOCK) || (word & BLKMIG_EOS))
        return run;                     /* a record that ends its section: what follows is not the section's */
    /* Invariant: [0, nbytes) are `count` records that differ in nothing but the sector. */
    while (n - run.nbytes >= step) {
        const uint8_t *next = p + run.nbytes;
        word += BLKMIG_BLOCK_SIZE;
        if (word < (uint64_t)BLKMIG_BLOCK_SIZE || blkmig_load_be64(next) != word || memcmp(next + 8, p + 8, step - 8) != 0)
            break;
        run.nbytes += step;
        run.count++;
    }
    return run;
}

#endif
