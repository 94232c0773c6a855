# SPDX-License-Identifier: GPL-2.0-or-later
"""The beginning of an outgoing migration: everything before the first part.

::

    check ─ connect ─ header ─ OPEN_RETURN_PATH ─ which section? ─ START of every section ─ the target's REPLY

Whatever can be refused without the target is refused before anybody connects. Migration thread only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from .. import block, params, savevm, stats
from . import comparing, connection, endpoints, fitting, negotiation, outgoingsession, questions


def begin(
    parameters: params.MigrationParameters,
    handlers: block.BlockSaveHandlers,
    state: savevm.SaveState,
    link: connection.Connection,
    asked: questions.Questions,
    sources: endpoints.Sources,
    statistics: stats.OutgoingStatistics,
    session: outgoingsession.OutgoingSession,
    *,
    connect_timeout: float,
) -> None:
    """Connect and write everything before the first part; take note of the section in `statistics`. Blocks."""
    # First: a QEMU at the other end takes a connection that ends for a failed migration.
    handlers.disks.check()
    handlers.disks.check_any_is_sent()
    sources.check()
    fitting.check_state_dir(parameters.state_dir)
    opened = sources.open_output()
    if not session.resume(timeout=connect_timeout):
        link.connect(timeout=connect_timeout, opened=opened)
    f = link.f
    sources.output_is_open()
    f.set_rate_limit(int(parameters.max_bandwidth))
    f.set_idle_timeout(parameters.idle_timeout)
    state.state_header(f)
    if parameters.return_path and link.open_return_path():
        state.send_open_return_path(f)
        if parameters.digests and parameters.writers_after == "refuse":
            asked.ask_for_trees(state)
    statistics.format = negotiation.agree(parameters, asked, handlers, state, connect_timeout=connect_timeout)
    comparing.check_resumes(parameters, handlers)
    if not asked.has_heard:
        link.take_silence_for_one_way()  # nobody was asked, either
    session.offer()
    state.state_setup(f)
    with _ending_stream(link, session):
        asked.await_reply()
        session.begin()


@contextlib.contextmanager
def _ending_stream(link: connection.Connection, session: outgoingsession.OutgoingSession) -> Iterator[None]:
    """End the stream if the body of a ``with``, which sends nothing, fails: then the target of a session waits for
    nobody.

    Over TLS, a goodbye on another connection would come before the target, which opens its disks, listens to those.
    """
    try:
        yield
    except BaseException:
        if session.key is not None:
            link.say_last(savevm.GIVEN_UP)
        raise
