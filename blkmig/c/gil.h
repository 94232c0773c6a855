/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Long loops run without the GIL, short ones with it: to drop it and to take it again costs 50 ns, and up to a whole
 * switch interval where another thread takes it meanwhile. 512 KiB are 3 us in the L2, 10 in the memory.
 *
 *     PyThreadState *state = gil_drop(nbytes);
 *     ...                                      no Python in here
 *     gil_take(state);
 */
#ifndef BLKMIG_GIL_H
#define BLKMIG_GIL_H

#include <Python.h>

enum { GIL_NBYTES = 512 << 10 };

static inline PyThreadState *gil_drop(size_t nbytes)
{
    return nbytes < GIL_NBYTES ? NULL : PyEval_SaveThread();
}

static inline void gil_take(PyThreadState *state)
{
    if (state)
        PyEval_RestoreThread(state);
}

#endif
