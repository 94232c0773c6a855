# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the extensions, all with the same flags; everything else is in pyproject.toml.

``BLKMIG_SANITIZE=address,undefined`` builds them with those sanitizers (see ``.ci/sanitize``). An ``-O`` in CFLAGS
replaces the one here.
"""

import os
import pathlib

from setuptools import Extension, setup

sanitizers = os.environ.get("BLKMIG_SANITIZE")
if sanitizers:
    flags = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]
elif "-O" in os.environ.get("CFLAGS", ""):
    flags = ["-g1"]  # whoever builds a distribution knows which optimisation it wants
else:
    flags = ["-O3", "-g1"]

# Of all of them: to build one too often costs seconds, one too seldom an hour.
depends = [str(path) for kind in ("_*.pxd", "c/*.h", "c/*.pxd") for path in pathlib.Path("blkmig").glob(kind)]

setup(
    data_files=[("share/man/man1", ["docs/man/blkmig.1"])],
    ext_modules=[
        Extension(
            f"blkmig.{name}",
            [f"blkmig/{name}.pyx"],
            depends=depends,
            extra_compile_args=[*flags, "-Wall", "-Wno-unused-function"],
            extra_link_args=flags[:1] if sanitizers else [],
        )
        for name in ("_core", "_gate", "_output", "_input", "_storing")
    ]
)
