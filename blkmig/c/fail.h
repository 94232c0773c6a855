/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the loops of system calls have of Python, and all that they have of it: how they fail, and how they go on.
 *
 * Nothing here needs the GIL. A failed function returns -1 with a Python exception set, as Cython's `except -1 nogil` wants
 * it. Who includes this is no kernel: see tests/packaging/test_headers.py.
 */
#ifndef BLKMIG_FAIL_H
#define BLKMIG_FAIL_H

#include <Python.h>
#include <errno.h>

static int io_fail(int error)
{
    PyGILState_STATE gil = PyGILState_Ensure();

    errno = error;
    PyErr_SetFromErrno(PyExc_OSError);
    PyGILState_Release(gil);
    return -1;
}

/* After a call has failed: 0 if it was only interrupted. */
static int io_again(void)
{
    PyGILState_STATE gil;
    int rc;

    if (errno != EINTR)
        return io_fail(errno);
    gil = PyGILState_Ensure();
    rc = PyErr_CheckSignals();
    PyGILState_Release(gil);
    return rc;
}

#endif
