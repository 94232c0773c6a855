/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The contract of blkmig._core in C: its numbers, big-endian fields, and the one step in which a bit of a Bitmap is set.
 * _core.pxd repeats what stands between the guards, word for word, because who cimports it has no header; a test compares.
 */
#ifndef BLKMIG_CONTRACT_H
#define BLKMIG_CONTRACT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Offsets and lengths of disks go through size_t, Py_ssize_t and pointers into mappings of whole files. */
#if __SIZEOF_SIZE_T__ < 8 || __SIZEOF_LONG__ < 8
#error "blkmig needs a 64-bit system: disks are larger than a 32-bit program can address"
#endif

enum {
    BLKMIG_BLOCK_SIZE = 1 << 20,
    BLKMIG_SECTOR_SIZE = 512,
    BLKMIG_SECTOR_BITS = 9,
    BLKMIG_SECTORS_PER_BLOCK = 2048,

    BLKMIG_DEVICE_BLOCK = 1,            /* flags of a record: the low bits of its word */
    BLKMIG_EOS = 2,
    BLKMIG_PROGRESS = 4,
    BLKMIG_ZERO_BLOCK = 8,
    BLKMIG_FLAG_MASK = BLKMIG_SECTOR_SIZE - 1,

    BLKMIG_WORD_BITS = 8 * sizeof(unsigned long),
    BLKMIG_WORD_SHIFT = 6,
    BLKMIG_GROUP_SHIFT = 9,             /* 4 KiB of words under one byte of a Bitmap's summary */
    BLKMIG_GROUP_WORDS = 1 << BLKMIG_GROUP_SHIFT,
};

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define blkmig_swap16(v) __builtin_bswap16(v)
#define blkmig_swap32(v) __builtin_bswap32(v)
#define blkmig_swap64(v) __builtin_bswap64(v)
#else
#define blkmig_swap16(v) (v)
#define blkmig_swap32(v) (v)
#define blkmig_swap64(v) (v)
#endif

/* memcpy: the fields of a stream stand at any address. */
static inline uint16_t blkmig_load_be16(const void *p) { uint16_t v; memcpy(&v, p, 2); return blkmig_swap16(v); }
static inline uint32_t blkmig_load_be32(const void *p) { uint32_t v; memcpy(&v, p, 4); return blkmig_swap32(v); }
static inline uint64_t blkmig_load_be64(const void *p) { uint64_t v; memcpy(&v, p, 8); return blkmig_swap64(v); }
static inline void blkmig_store_be16(void *p, uint16_t v) { v = blkmig_swap16(v); memcpy(p, &v, 2); }
static inline void blkmig_store_be32(void *p, uint32_t v) { v = blkmig_swap32(v); memcpy(p, &v, 4); }
static inline void blkmig_store_be64(void *p, uint64_t v) { v = blkmig_swap64(v); memcpy(p, &v, 8); }

#define blkmig_word_load(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
#define blkmig_word_or(p, mask) __atomic_fetch_or((p), (mask), __ATOMIC_SEQ_CST)
#define blkmig_word_and(p, mask) __atomic_fetch_and((p), (mask), __ATOMIC_SEQ_CST)
#define blkmig_word_swap(p, value) __atomic_exchange_n((p), (value), __ATOMIC_SEQ_CST)

/* The word before its byte of the summary, always. Test first: a line that is only read stays in all caches. */
static inline void blkmig_set_summary(uint8_t *summary, size_t group)
{
    if (__atomic_load_n(summary + group, __ATOMIC_SEQ_CST) != 1)
        __atomic_store_n(summary + group, 1, __ATOMIC_SEQ_CST);
}

static inline void blkmig_set_word(unsigned long *words, uint8_t *summary, size_t index, unsigned long mask)
{
    if ((blkmig_word_load(words + index) & mask) != mask)
        blkmig_word_or(words + index, mask);
    blkmig_set_summary(summary, index >> BLKMIG_GROUP_SHIFT);
}

#endif
