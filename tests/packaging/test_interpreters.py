# SPDX-License-Identifier: GPL-2.0-or-later
"""A second interpreter in one process: the compiled part is refused there, in a sentence, and the first goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import blkmig

ROOT = Path(blkmig.__file__).parent.parent

PROGRAM = """
import sys, tempfile
try:
    import _interpreters as interpreters  # 3.13 and later
except ImportError:
    import _xxsubinterpreters as interpreters
import blkmig

here = tempfile.mkdtemp()
disk = blkmig.MemoryBackend(bytearray(5000), name="d")
blkmig.send([disk], f"file:{here}/stream")
second = '''
import sys
sys.path[:0] = %r
import blkmig
print("imported", flush=True)
try:
    blkmig.MemoryBackend(bytearray(512))
except ImportError as error:
    print("refused:", error, flush=True)
''' % (sys.path,)
each = interpreters.create()
interpreters.run_string(each, second)
interpreters.destroy(each)
blkmig.send([disk], f"file:{here}/stream")
print("goes on")
"""


def test_a_second_interpreter_is_refused() -> None:
    """The package itself has nothing compiled, so who only looks at its version may do so."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{PROGRAM}"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, refused, last = done.stdout.splitlines()
    assert (first, last) == ("imported", "goes on")
    assert refused.startswith("refused:")
    assert "interpreter" in refused
