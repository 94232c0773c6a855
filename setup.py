# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the extensions; everything else is in pyproject.toml.

A wheel says what is in it, in ``.dist-info/sboms`` (PEP 770), for whoever looks for known faults of what is installed.

``BLKMIG_SANITIZE=address,undefined`` builds them with those sanitizers (see ``.ci/sanitize``). An ``-O`` in CFLAGS
replaces the one here.
"""

import json
import os
import pathlib
from typing import Any

import Cython
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel

sanitizers = os.environ.get("BLKMIG_SANITIZE")
if sanitizers:
    flags = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]
elif "-O" in os.environ.get("CFLAGS", ""):
    flags = ["-g1"]  # whoever builds a distribution knows which optimisation it wants
else:
    flags = ["-O3", "-g1"]

# A loop over records takes a tenth longer where it happens to begin in the middle of a cache line.
LOOPS = {"_input": ["-falign-loops=64"]}

# Of all of them: to build one too often costs seconds, one too seldom an hour.
depends = [str(path) for kind in ("_*.pxd", "c/*.h", "c/*.pxd") for path in pathlib.Path("blkmig").glob(kind)]



def component(name: str, version: str, license: str) -> dict[str, Any]:
    """Return a package as CycloneDX describes one."""
    purl = f"pkg:pypi/{name.lower()}@{version}"
    about = {"type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl}
    return {**about, "licenses": [{"license": {"id": license}}]}


def bill_of_materials(version: str) -> dict[str, Any]:
    """Return what the compiled modules are made of, in CycloneDX: our own code, and what Cython puts into them.

    No time and no random number is in it: the same sources and the same Cython give the same bytes.
    """
    ours = component("blkmig", version, "GPL-2.0-or-later")
    cython = component("Cython", Cython.__version__, "Apache-2.0")
    cython["description"] = "the code that it generates, and its runtime in each compiled module"
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": ours},
        "components": [cython],
        "dependencies": [{"ref": ours["bom-ref"], "dependsOn": [cython["bom-ref"]]}, {"ref": cython["bom-ref"]}],
    }


class WithBill(bdist_wheel):
    """A wheel with its bill of materials."""

    def write_wheelfile(self, wheelfile_base: str, *args: Any, **options: Any) -> None:
        """Write it beside WHEEL, before RECORD is made of all that is there."""
        super().write_wheelfile(wheelfile_base, *args, **options)
        folder = pathlib.Path(wheelfile_base) / "sboms"
        folder.mkdir(exist_ok=True)
        text = json.dumps(bill_of_materials(self.distribution.get_version()), indent=2, sort_keys=True)
        (folder / "blkmig.cdx.json").write_text(text + "\n")


setup(
    cmdclass={"bdist_wheel": WithBill},
    data_files=[("share/man/man1", ["docs/man/blkmig.1"])],
    ext_modules=[
        Extension(
            f"blkmig.{name}",
            [f"blkmig/{name}.pyx"],
            depends=depends,
            extra_compile_args=[*flags, *LOOPS.get(name, []), "-Wall", "-Wno-unused-function"],
            extra_link_args=flags[:1] if sanitizers else [],
        )
        for name in ("_core", "_gate", "_leaving", "_output", "_input", "_storing")
    ]
)
