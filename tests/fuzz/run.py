#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Fuzz everything that parses: ``python tests/fuzz/run.py [--seconds N] [--corpus DIR] [TARGET...]``.

With atheris (``pip install atheris``), which sees what code a change reaches; without it by changes alone, and says so.
Each target has `--seconds` for itself, and a process. What makes one fail is in a file of the current folder, or its
seed is said. In the folder of `--corpus` what reaches new code is kept, for the next time.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "support"), str(Path(__file__).parents[2])]

LONGEST = 8192  # of what the engine makes; seeds may be longer
LIMIT_SECONDS = 20
LIMIT_MIB = 2048


def with_atheris(name: str, seconds: int, corpus: Path) -> None:
    """Fuzz one target in this process; ends it."""
    import atheris  # type: ignore[import-not-found,unused-ignore] # it is there where somebody fuzzes

    with atheris.instrument_imports(include=["blkmig"]):
        import fuzz_targets
    target, make = fuzz_targets.TARGETS[name]
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(make()):
        (corpus / f"seed-{number}").write_bytes(seed)
    longest = max(LONGEST, *(len(seed) for seed in make()))
    limits = [f"-max_total_time={seconds}", f"-timeout={LIMIT_SECONDS}", f"-rss_limit_mb={LIMIT_MIB}"]
    atheris.Setup([sys.argv[0], *limits, f"-max_len={longest}", "-print_final_stats=1", str(corpus)], target)
    atheris.Fuzz()


def without(name: str, seconds: int) -> None:
    """Fuzz one target by changes of its seeds."""
    import fuzz_targets
    import fuzzing

    target, make = fuzz_targets.TARGETS[name]
    seeds, start, end, count = make(), random.randrange(1 << 32), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        data = fuzzing.mutated(random.Random(start + count), seeds)
        try:
            target(data)
        except BaseException:
            print(f"target {name}, seed {start + count}: {data[:2000]!r}", file=sys.stderr)
            raise
        count += 1
    print(f"{name}: {count} times, from seed {start}")


def main() -> int:
    """Fuzz the targets one after the other; return 1 if one has failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--corpus", type=Path, help="a folder that keeps what reaches new code")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # the process of one target
    options = parser.parse_args()
    has_atheris = importlib.util.find_spec("atheris") is not None
    if options.alone:
        (name,) = options.targets
        if has_atheris:
            with_atheris(name, options.seconds, options.corpus / name)
        else:
            without(name, options.seconds)
        return 0
    import fuzz_targets

    print("with atheris" if has_atheris else "without atheris: by changes alone (pip install atheris)")
    unknown = set(options.targets) - set(fuzz_targets.TARGETS)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(fuzz_targets.TARGETS)}")
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.targets or fuzz_targets.TARGETS:
            corpus = options.corpus or Path(folder)
            alone = [sys.executable, __file__, name, "--alone", f"--seconds={options.seconds}", f"--corpus={corpus}"]
            if subprocess.run(alone, check=False).returncode:
                failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "nothing was found")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
