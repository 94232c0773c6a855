# SPDX-License-Identifier: GPL-2.0-or-later
"""How long a place has to wait from which tries have failed, and how little is kept of it."""

from __future__ import annotations

import random

from blkmig.channel import refusals


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_it_grows_and_has_a_bound() -> None:
    clock = Clock()
    failed = refusals.Refusals(clock)
    seen = []
    for _ in range(8):
        seen.append(failed.seconds("192.0.2.1"))
        failed.note("192.0.2.1")
    assert seen == [0, 0, 0.25, 0.5, 1, 1, 1, 1]
    assert failed.count == 8
    clock.now += 0.75
    assert failed.seconds("192.0.2.1") == 0.25
    clock.now += 0.25
    assert failed.seconds("192.0.2.1") == 0.0


def test_ten_thousand_failures_are_no_more_than_the_bound() -> None:
    failed = refusals.Refusals(Clock())
    for _ in range(10_000):
        failed.note("192.0.2.1")
    assert failed.seconds("192.0.2.1") == refusals.MOST_SECONDS


def test_who_mistyped_once_does_not_wait() -> None:
    failed = refusals.Refusals(Clock())
    assert failed.note("192.0.2.1") == ""
    assert failed.seconds("192.0.2.1") == 0.0
    assert failed.note("192.0.2.1") == "; 2 tries from there have failed, so the next one waits 0.25 s"


def test_others_do_not_wait() -> None:
    failed = refusals.Refusals(Clock())
    for _ in range(10):
        for host in ("192.0.2.1", "2001:db8:0:1::1", "fe80::1%eth0", ""):
            failed.note(host)
    for host in ("192.0.2.2", "2001:db8:0:2::1", "fe80::2%eth0", "fe80::1%eth1"):
        assert failed.seconds(host) == 0.0, host
    assert failed.seconds("2001:db8:0:1:ffff::9") == refusals.MOST_SECONDS, "the same network"


def test_it_is_forgotten() -> None:
    clock = Clock()
    failed = refusals.Refusals(clock)
    for _ in range(5):
        failed.note("192.0.2.1")
    clock.now += refusals.FORGOTTEN_SECONDS
    failed.note("192.0.2.1")
    assert failed.seconds("192.0.2.1") == 0.0


def test_who_has_proved_it_begins_anew() -> None:
    failed = refusals.Refusals(Clock())
    failed.forget("192.0.2.1")
    for host in ("192.0.2.1", "192.0.2.2"):
        for _ in range(5):
            failed.note(host)
    failed.forget("192.0.2.1")
    assert failed.seconds("192.0.2.1") == 0.0
    assert failed.seconds("192.0.2.2") == refusals.MOST_SECONDS
    assert failed.count == 10


def test_what_is_kept_does_not_grow() -> None:
    """However many places there are: the one that failed longest ago makes room."""
    failed = refusals.Refusals(Clock())
    for number in range(5 * refusals.MAX_PLACES):
        failed.note(f"10.0.{number >> 8}.{number & 255}")
        for _ in range(2):
            failed.note("192.0.2.1")
        assert len(failed.places) <= refusals.MAX_PLACES
    assert failed.seconds("192.0.2.1") == refusals.MOST_SECONDS


def test_against_a_model_that_keeps_everything() -> None:
    """As long as there are fewer places than there is room for."""
    rng = random.Random(7)
    clock = Clock()
    failed = refusals.Refusals(clock)
    past: dict[str, list[float]] = {}
    for step in range(3000):
        clock.now += rng.choice((0, 0.125, 0.5, 5, 61)) if rng.random() < 0.5 else 0.0
        host = f"192.0.2.{rng.randrange(5)}"
        times = past.setdefault(host, [])
        if times and clock.now - times[-1] >= refusals.FORGOTTEN_SECONDS:
            times.clear()
        delay = 0.0 if len(times) < 2 else min(1.0, 0.25 * 2 ** (len(times) - 2))
        expected = max(0.0, times[-1] + delay - clock.now) if times else 0.0
        assert failed.seconds(host) == expected, f"seed 7, step {step}"
        if rng.random() < 0.6:
            failed.note(host)
            times.append(clock.now)


def test_what_is_said_of_them() -> None:
    failed = refusals.Refusals(Clock())
    assert failed.notes == []
    failed.note("192.0.2.1")
    assert failed.notes[0].startswith("1 connection could not prove to be the sender's, the last one from 192.0.2.1")
    failed.note("192.0.2.7")
    assert failed.notes[0].startswith("2 connections could not")
