# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the one extension, ``blkmig._core``; everything else is in pyproject.toml.

``BLKMIG_SANITIZE=address,undefined`` builds it with those sanitizers (see ``.ci/run``).
"""

import os
import pathlib

from setuptools import Extension, setup

sanitizers = os.environ.get("BLKMIG_SANITIZE")
flags = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=undefined", "-g", "-O1"] if sanitizers else ["-O3", "-g1"]

setup(
    ext_modules=[
        Extension(
            "blkmig._core",
            ["blkmig/_core.pyx"],
            depends=["blkmig/_core.pxd", *map(str, pathlib.Path("blkmig").glob("_*.h"))],
            extra_compile_args=[*flags, "-Wall", "-Wno-unused-function"],
            extra_link_args=flags[:1] if sanitizers else [],
        )
    ]
)
