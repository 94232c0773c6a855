# SPDX-License-Identifier: GPL-2.0-or-later
"""Functions of others that a call would not run are refused wherever they come in: nothing of them would be done."""

import functools

import pytest

import blkmig
from blkmig import disk, errors, unrun
from blkmig.testing import Peer


async def is_async(*_, **__):
    pass


async def is_async_generator(*_, **__):
    yield


def is_generator(*_, **__):
    yield


class IsAsyncToCall:
    async def __call__(self, *_):
        pass

    async def verb(self, *_):
        pass


NOT_RUN = [
    is_async,
    is_async_generator,
    is_generator,
    functools.partial(is_async, 1),
    IsAsyncToCall(),
    IsAsyncToCall().verb,
]


@pytest.mark.parametrize("function", NOT_RUN, ids=range(len(NOT_RUN)))
def test_is_refused(function):
    with pytest.raises(errors.WrongType, match=r"what it is is (an async function|a generator), and"):
        unrun.check("what it is", function)


@pytest.mark.parametrize("what", [print, len, lambda: None, functools.partial(print), {}.get, errors.each, None, 5])
def test_what_runs_is_not(what):
    unrun.check("it", what)


def test_what_is_iterated_may_be_a_generator():
    unrun.check("it", is_generator, may_yield=True)
    with pytest.raises(errors.WrongType):
        unrun.check("it", is_async_generator, may_yield=True)


@pytest.mark.parametrize("call", [blkmig.send, blkmig.outgoing])
def test_on_progress(tmp_path, call):
    with (
        blkmig.MemoryBackend(bytearray(512), name="v") as source,
        pytest.raises(errors.WrongType, match="on_progress is an async function"),
    ):
        call([source], f"file:{tmp_path}/stream", on_progress=is_async)
    assert not list(tmp_path.iterdir())


def verbs():
    """Return what a disk's class may define: of the contract, and of the ready-made part that files and memory have."""
    bases = (blkmig.BlockBackend, disk.LocalBackend)
    found = {verb: known for base in bases for verb, known in vars(base).items() if not verb.startswith("__")}
    return sorted(verb for verb, known in found.items() if callable(known))


@pytest.mark.parametrize("verb", verbs())
def test_verbs_of_a_disk(verb):
    with pytest.raises(errors.WrongType, match=rf"Theirs.{verb} is an async function"):
        type("Theirs", (disk.LocalBackend,), {verb: is_async, "__module__": "theirs"})


def test_a_verb_from_a_class_beside_it():
    beside = type("Beside", (), {"flush": is_generator})
    with pytest.raises(errors.WrongType, match=r"Theirs.flush is a generator"):
        type("Theirs", (beside, disk.LocalBackend), {"__module__": "theirs"})


@pytest.mark.parametrize("verb", [verb for verb in vars(blkmig.SaveVMHandlers) if not verb.startswith("_")])
def test_handlers_of_a_section(tmp_path, verb):
    handlers = type("Theirs", (blkmig.SaveVMHandlers,), {verb: is_async})()
    with blkmig.MemoryBackend(bytearray(512), name="v") as source:
        migration = blkmig.outgoing([source], f"file:{tmp_path}/stream")
        with pytest.raises(errors.WrongType, match=f"section 'theirs': {verb} is an async function"):
            migration.savevm.register_savevm_live("theirs", 0, 1, handlers)


def test_parts_of_a_section_may_be_generated(tmp_path):
    handlers = type("Theirs", (blkmig.SaveVMHandlers,), {"iterate_parts": is_generator})()
    with blkmig.MemoryBackend(bytearray(512), name="v") as source:
        blkmig.outgoing([source], f"file:{tmp_path}/stream").savevm.register_savevm_live("theirs", 0, 1, handlers)


def test_steps_of_a_peer():
    with pytest.raises(errors.WrongType, match="a step is an async function"):
        Peer.paired(is_async)
