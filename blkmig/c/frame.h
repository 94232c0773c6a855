/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Records of the block section, in memory:
 *
 *     | be64: sector << 9 | flags | u8: n | name, n bytes | payload, 1 MiB |
 *                                 '--- DEVICE_BLOCK only --'-- not ZERO --'
 *
 * and, in the section `blkmig` alone, packs:
 *
 *     | be64: k << 9 | flags | u8: n | name, n bytes | k times { be64: offset, be32: bytes } | payloads, back to back |
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

/*
 * Names of up to 31 bytes, which is most of them, are compared in pieces of a fixed size, and those of up to 63 are
 * written so, some past the end of their record or from before its name. A memcpy or memcmp of a length that is known
 * only here is a call, and takes longer than all the rest (zen 4, 6 bytes: 1.9 ns a record against 0.6).
 */

/* Write records up to `end` while `width` bytes fit behind the word; where the next one would stand. */
static inline __attribute__((always_inline))
uint8_t *frame_zero_records_fast(
    uint8_t *p, const uint8_t *end, uint64_t *word, size_t step, const uint8_t *tail, size_t width)
{
    for (; (size_t)(end - p) >= 8 + width; p += step, *word += BLKMIG_BLOCK_SIZE) {
        blkmig_store_be64(p, *word);
        memcpy(p + 8, tail, width);
    }
    return p;
}

static void frame_zero_records(uint8_t *p, uint64_t word, size_t count, const char *name, size_t length)
{
    uint8_t tail[64] = {(uint8_t)length}, *end = p + count * (9 + length);

    word |= BLKMIG_DEVICE_BLOCK | BLKMIG_ZERO_BLOCK;
    memcpy(tail + 1, name, length < 64 ? length : 0);
    if (length < 16)
        p = frame_zero_records_fast(p, end, &word, 9 + length, tail, 16);
    else if (length < 32)
        p = frame_zero_records_fast(p, end, &word, 9 + length, tail, 32);
    else if (length < 64)
        p = frame_zero_records_fast(p, end, &word, 9 + length, tail, 64);
    for (; p < end; word += BLKMIG_BLOCK_SIZE)
        p += frame_head(p, word, name, length);
}

enum {
    FRAME_EXTENTS_MAX = 256,            /* of a pack, whose payloads are at most BLKMIG_BLOCK_SIZE together */
    FRAME_EXTENT_NBYTES = 12,
};

/* Extents are pairs of an offset and a length, one pair behind the other. */
static inline void frame_put_extent(uint8_t *p, const uint64_t *pair)
{
    blkmig_store_be64(p, pair[0]);
    blkmig_store_be32(p + 8, (uint32_t)pair[1]);
}

static inline void frame_get_extent(const uint8_t *p, uint64_t *pair)
{
    pair[0] = blkmig_load_be64(p);
    pair[1] = blkmig_load_be32(p + 8);
}

/* Why n pairs are no list of a pack, or NULL if they are one; *total is the length of its payload. */
static const char *frame_check_extents(const uint64_t *pairs, size_t n, size_t *total)
{
    uint64_t end = 0;

    if (n < 1 || n > FRAME_EXTENTS_MAX)
        return "a pack has 1 to 256 extents";
    for (*total = 0; n--; pairs += 2) {
        if ((pairs[0] | pairs[1]) % BLKMIG_SECTOR_SIZE || pairs[1] == 0)
            return "the extents of a pack are whole sectors, one at least";
        if (pairs[0] < end)
            return "the extents of a pack ascend, and none overlaps the next one";
        if (pairs[1] > BLKMIG_BLOCK_SIZE - *total || pairs[0] > INT64_MAX - pairs[1])
            return "a pack has at most 1 MiB of payload, and lies below 2^63";
        *total += pairs[1];
        end = pairs[0] + pairs[1];
    }
    return NULL;
}

struct frame_run {
    uint64_t word;                      /* of the first record */
    size_t count;                       /* records */
    const char *name;
    size_t length;                      /* of the name */
    size_t nbytes;                      /* of the run in the stream; 0: its first record is not complete */
};

static inline uint64_t frame_differ(const uint8_t *a, const uint8_t *b)
{
    return blkmig_load_be64(a) ^ blkmig_load_be64(b);
}

typedef uint64_t frame_vector __attribute__((vector_size(16)));

static inline frame_vector frame_pair(const uint8_t *p)
{
    frame_vector pair;

    memcpy(&pair, p, sizeof(pair));
    return pair;
}

/* Whether a is b, and c is d. */
static inline int frame_same_pair(frame_vector a, frame_vector b, frame_vector c, frame_vector d)
{
    frame_vector differ = (a ^ b) | (c ^ d);

    return (differ[0] | differ[1]) == 0;
}

/* Whether two records of n bytes, the names of which are at most `most` long, are the same behind their words. */
static inline __attribute__((always_inline))
int frame_same_tail(const uint8_t *a, const uint8_t *b, size_t n, size_t most)
{
    if (most == 7)
        return (frame_differ(a + n - 8, b + n - 8) & (~(uint64_t)0 >> 8 * (16 - n))) == 0;
    if (most == 15)
        return (frame_differ(a + 8, b + 8) | frame_differ(a + n - 8, b + n - 8)) == 0;
    if (most == 31)
        return frame_same_pair(frame_pair(a + 8), frame_pair(b + 8), frame_pair(a + n - 16), frame_pair(b + n - 16));
    return memcmp(a + 8, b + 8, n - 8) == 0;
}

/* Of n bytes at p, which begin with a record of `step` bytes: how many records that one and those that continue it are. */
static inline __attribute__((always_inline))
size_t frame_count_run(const uint8_t *p, size_t n, size_t step, size_t most)
{
    uint64_t word = blkmig_load_be64(p);
    const uint8_t *next = p;
    size_t count = 0;

    do {
        count++;
        next += step;
        n -= step;
        word += BLKMIG_BLOCK_SIZE;
    } while (n >= step && word >= BLKMIG_BLOCK_SIZE && blkmig_load_be64(next) == word
             && frame_same_tail(next, p, step, most));
    return count;
}

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
    run.count = run.length <= 7 ? frame_count_run(p, n, step, 7) : run.length <= 15 ? frame_count_run(p, n, step, 15)
        : run.length <= 31 ? frame_count_run(p, n, step, 31) : frame_count_run(p, n, step, 255);
    run.nbytes = run.count * step;
    return run;
}

#endif
