# SPDX-License-Identifier: GPL-2.0-or-later
"""Every exception of the package survives being copied and pickled, with all that it knows (D1)."""

from __future__ import annotations

import concurrent.futures
import copy
import functools
import importlib
import inspect
import multiprocessing
import pickle
import pkgutil
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import blkmig
from blkmig import _output, _storing, errors, portable
from blkmig.migration import pause, watchdog


def kinds() -> Iterator[type[BaseException]]:
    """Every exception class of the package: also those that nobody has thought of here."""
    for module in pkgutil.walk_packages(blkmig.__path__, "blkmig."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    pending: list[type[BaseException]] = [BaseException]
    seen: set[type[BaseException]] = set()
    while pending:
        for kind in pending.pop().__subclasses__():
            if kind not in seen:
                seen.add(kind)
                pending.append(kind)
    ours = [kind for kind in seen if kind.__module__.startswith("blkmig")]
    yield from sorted(ours, key=lambda kind: kind.__qualname__)


KINDS = list(kinds())


def made(kind: type[BaseException]) -> BaseException:
    """Return one of that kind: the constructor is asked what it wants."""
    values: dict[str, object] = {
        "int": 7, "float": 1.5, "str": "some text", "dict": {"vda": [(1, 2)]}, "OSError": OSError(28, "No space left")}
    if kind.__init__ in (Exception.__init__, BaseException.__init__, OSError.__init__, ValueError.__init__):
        error = kind(28, "No space left") if issubclass(kind, OSError) else kind("some text")
    else:
        args: list[object] = []
        kwargs: dict[str, object] = {}
        for each in list(inspect.signature(kind.__init__).parameters.values())[1:]:
            wanted = next((value for name, value in values.items() if name in str(each.annotation)), "?")
            if each.kind is each.KEYWORD_ONLY:
                kwargs[each.name] = wanted
            elif each.kind is not each.VAR_KEYWORD:
                args.append(wanted)
        error = kind(*args, **kwargs)
    if isinstance(error, _storing.LateError | _output.PayloadError):
        error.offset = 5
    error.add_note("and then: something else")
    error.__cause__ = OSError(5, "Input/output error")
    return error


WAYS: dict[str, Callable[[BaseException], BaseException]] = {
    **{
        f"pickle {protocol}": lambda error, protocol=protocol: pickle.loads(pickle.dumps(error, protocol))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


def test_the_tree_is_walked() -> None:
    assert {errors.InDoubt, errors.DeviceError, errors.ParameterError, _storing.LateError} <= set(KINDS)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__qualname__)
def test_an_error_survives(kind: type[BaseException], way: str) -> None:
    error = made(kind)
    other = WAYS[way](error)
    assert type(other) is kind
    assert (str(other), other.args) == (str(error), error.args)
    fields = {name: value for name, value in vars(error).items() if name != "__notes__"}
    assert {name: value for name, value in vars(other).items() if name != "__notes__"} == fields
    assert other.__notes__ == ["and then: something else"]
    if isinstance(error, portable.Portable):
        assert repr(other.__cause__) == repr(error.__cause__)
    if isinstance(error, errors.MigrationError):
        assert other.exit_code == error.exit_code  # type: ignore[attr-defined]
    again = WAYS[way](other)
    assert str(again) == str(error)


@pytest.mark.parametrize("way", WAYS)
def test_what_cannot_be_pickled_becomes_text(way: str) -> None:
    """A cause or a field of somebody else's making does not keep an error from being told."""

    class Local(Exception):
        pass

    error = errors.DeviceError("cannot read", device="vda", cause="why")
    error.__cause__ = Local("of this function")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    other = WAYS[way](error)
    assert "of this function" in str(other.__cause__)
    assert "lock" in str(other.lock)  # type: ignore[attr-defined]
    assert isinstance(other, errors.DeviceError)
    assert other.device == "vda"


def raise_one(kind: str) -> None:
    raise made(getattr(errors, kind)) from OSError(5, "Input/output error")


def check_all(run: Callable[[str], object]) -> None:
    for kind in KINDS:
        if kind.__module__.startswith("blkmig.errors."):
            with pytest.raises(kind) as caught:
                run(kind.__name__)
            assert str(caught.value) == str(made(kind))
            assert "Input/output error" in str(caught.value.__cause__)


def test_errors_come_out_of_a_process_pool() -> None:
    """It was a BrokenProcessPool."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        check_all(lambda kind: pool.submit(raise_one, kind).result(30))


def test_errors_come_out_of_a_pool() -> None:
    """`get` never returned."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        check_all(lambda kind: pool.apply_async(raise_one, (kind,)).get(30))


def test_each_is_called_and_no_error_is_lost() -> None:
    """The first one is raised; what comes later is a note to it, with its own notes, also through `keeping`."""
    calls: list[int] = []

    def call(number: int) -> None:
        calls.append(number)
        if number % 2:
            error = errors.MigrationError(f"error {number}")
            error.add_note(f"note {number}")
            raise error

    with pytest.raises(errors.MigrationError, match="error 1") as caught:
        errors.each(functools.partial(call, number) for number in range(6))
    assert calls == list(range(6))
    assert caught.value.__notes__ == ["note 1", "and then: error 3", "note 3", "and then: error 5", "note 5"]
    first = errors.MigrationError("first")
    with errors.keeping(first):
        raise caught.value
    assert first.__notes__ == ["and then: error 1", *caught.value.__notes__]


def test_one_error_that_is_raised_again_is_no_second_one() -> None:
    """A caller's function may raise the same object each time that it is called."""
    error = ValueError("no")
    error.add_note("why")

    def call() -> None:
        raise error

    with pytest.raises(ValueError, match="no") as caught:
        errors.each([call, call])
    with errors.keeping(error):
        call()
    assert caught.value.__notes__ == ["why"]


def test_writers_of_several_disks_that_cannot_be_released() -> None:
    """Of a pause that fails, too, nothing is lost."""

    class Stuck(blkmig.MemoryBackend):
        def release_writers(self, *, refuse: bool = False) -> None:
            raise errors.DeviceError("cannot release its writers", device=self.name, cause="stuck")

    disks = [Stuck(bytearray(4096), name=name) for name in ("one", "two")]
    with pytest.raises(errors.ChannelError) as caught, pause.pausing(
        pause.Pause(
            list(disks),
            watchdog.Watchdog(1.0),
            clock=time.monotonic,
            bound=60,
            is_move=False,
            cut=lambda: None,
            reset=lambda: None,
            may_be_complete=lambda: False,
        )
    ):
        raise errors.ChannelError("sending", uri="tcp:host:1", cause="it broke")
    assert [note for note in caught.value.__notes__ if "'one'" in note and "and then" in note]
    assert [note for note in caught.value.__notes__ if "'two'" in note and "and then" in note]
