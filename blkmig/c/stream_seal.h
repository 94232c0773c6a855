/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Streams that are sealed, as by TLS: what is put is encrypted by one Python object, and what comes is decrypted by another.
 *
 *     put ──► staging, payload ──► seal(view) ──► bytes ──► fd
 *     got ◄── staging, payload ◄── unseal(view, many) ◄──── fd
 *
 * Both work on a memoryview of memory that is theirs during the call alone.
 */
#ifndef BLKMIG_STREAM_SEAL_H
#define BLKMIG_STREAM_SEAL_H

#include "stream.h"
#include "stream_send.h"

enum { STREAM_PIECE_NBYTES = 1 << 18 }; /* sealed and sent in one go, so that it stays in the CPU's cache: decisions/tls.md */

/* Return what `callable` makes of n bytes at p, and `more` if it is not NULL; NULL with an exception. */
static PyObject *stream_call(PyObject *callable, const uint8_t *p, size_t n, int flags, PyObject *more)
{
    PyObject *view = PyMemoryView_FromMemory((char *)p, n, flags), *result, *released = NULL;

    if (view == NULL)
        return NULL;
    result = PyObject_CallFunctionObjArgs(callable, view, more, NULL);
    if (result != NULL)                 /* after an exception its traceback may have the view */
        released = PyObject_CallMethod(view, "release", NULL);
    if (released == NULL)
        Py_CLEAR(result);
    Py_XDECREF(released);
    Py_DECREF(view);
    return result;
}

static int stream_seal_piece(struct stream *s, PyObject *seal, const uint8_t *p, size_t n)
{
    PyObject *sealed = stream_call(seal, p, n, PyBUF_READ, NULL);
    int rc = -1;

    if (sealed != NULL && !PyBytes_Check(sealed))
        PyErr_Format(PyExc_TypeError, "what is sealed is bytes, not %R", sealed);
    else if (sealed != NULL) {
        Py_BEGIN_ALLOW_THREADS
        rc = stream_send_as_is(s, (const uint8_t *)PyBytes_AS_STRING(sealed), PyBytes_GET_SIZE(sealed));
        Py_END_ALLOW_THREADS
    }
    Py_XDECREF(sealed);
    s->flushed += rc == 0 ? n : 0;
    return rc;
}

/* With the GIL, by who has said that the stream is busy: send what is staged and then n bytes at p, sealed. */
static int stream_seal(struct stream *s, PyObject *seal, const uint8_t *p, size_t n)
{
    size_t piece = s->tail - s->head;

    if (piece && stream_seal_piece(s, seal, s->staging + s->head, piece) < 0)
        return -1;
    s->head = s->tail = 0;
    for (; n; p += piece, n -= piece) {
        piece = n < STREAM_PIECE_NBYTES ? n : STREAM_PIECE_NBYTES;
        if (stream_seal_piece(s, seal, p, piece) < 0)
            return -1;
    }
    return 0;
}

/* What `stream.unseal` is where a Python object does it. */
static ssize_t stream_unseal(void *unseal, uint8_t *p, size_t n, int many)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *result = stream_call(unseal, p, n, PyBUF_WRITE, many ? Py_True : Py_False);
    ssize_t got = result == Py_None ? STREAM_NOTHING : -1;

    if (result != NULL && result != Py_None) {
        got = PyLong_AsSsize_t(result);
        if (!PyErr_Occurred() && (got < 0 || (size_t)got > n)) {
            PyErr_Format(PyExc_ValueError, "%zd bytes do not fit into %zu", got, n);
            got = -1;
        }
    }
    Py_XDECREF(result);
    PyGILState_Release(gil);
    return got;
}

#endif
