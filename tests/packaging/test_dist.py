# SPDX-License-Identifier: GPL-2.0-or-later
"""The sdist builds; the wheel built from it holds what users need, nothing else, and works in an empty environment."""

from __future__ import annotations

import configparser
import dataclasses
import email
import email.message
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import blkmig

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "blkmig"
SHIPPED = {"blkmig", "tests", "benchmarks", "docs", "examples", "tools"}
FILES = {"pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "CHANGES.md", "LICENSE", "mkdocs.yml"}
COMPILED = ("_core", "_gate", "_leaving", "_output", "_input", "_storing")
EXTENSIONS = {f"blkmig/{name}{sysconfig.get_config_var('EXT_SUFFIX')}" for name in COMPILED}
BILL = "sboms/blkmig.cdx.json"
CONTRACT = {"blkmig/__init__.pxd", "blkmig/_core.pxd"}  # all that cimport needs


@dataclasses.dataclass(frozen=True)
class Built:
    """One build of the working tree: the source it was made of, both files, and their names without the root folder."""

    source: Path
    sdist: Path
    wheel: Path

    def sdist_names(self) -> set[str]:
        with tarfile.open(self.sdist) as archive:
            return {name.partition("/")[2] for name in archive.getnames() if not archive.getmember(name).isdir()}

    def wheel_names(self) -> set[str]:
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())

    def metadata(self) -> email.message.Message:
        return email.message_from_string(self.read_info("METADATA"))

    def read_info(self, name: str) -> str:
        with zipfile.ZipFile(self.wheel) as archive:
            return archive.read(f"blkmig-{blkmig.__version__}.dist-info/{name}").decode()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build the sdist from a copy of the tree that holds what a tree in use may hold, and the wheel from the sdist."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    hidden = shutil.ignore_patterns("__pycache__", "*.so", "_*.c", ".*")
    for name in SHIPPED:
        shutil.copytree(ROOT / name, source / name, ignore=hidden)
    for name in FILES:
        shutil.copy(ROOT / name, source)
    made = ("blkmig/_core.c", "blkmig/_core.html", "blkmig/_output.c", "blkmig/old.so")
    for stray in (*made, "tests/disk.raw", ".venv/lib/x.py", "x.py"):
        (source / stray).parent.mkdir(parents=True, exist_ok=True)
        (source / stray).touch()
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, source],
        env={**os.environ, "CFLAGS": "-O0"},  # whether it builds is the question, not how fast it is
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    return Built(source, sdist, wheel)


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel, without its dependencies, where there is nothing else; return the folder of the commands."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False, symlinks=True)
    pip = [sys.executable, "-m", "pip", "-q", "--python", folder / "bin/python", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", built.wheel], check=True)
    return folder / "bin"


def package_files(*suffixes: str) -> set[str]:
    """Return the package's files that end so, as paths from the root."""
    files = {path for suffix in suffixes for path in PACKAGE.rglob(f"*{suffix}")}
    return {str(path.relative_to(ROOT)) for path in files}


class TestSdist:
    def test_name(self, built: Built) -> None:
        assert built.sdist.name == f"blkmig-{blkmig.__version__}.tar.gz"

    def test_top_level(self, built: Built) -> None:
        top = {name.partition("/")[0] for name in built.sdist_names()}
        assert top == SHIPPED | FILES | {"PKG-INFO", "setup.cfg", "blkmig.egg-info"}

    def test_sources(self, built: Built) -> None:
        assert package_files(".py", ".pyx", ".pxd", ".pyi", ".h", ".json", "py.typed") == {
            name for name in built.sdist_names() if name.startswith("blkmig/")
        }

    def test_tests_run_from_it(self, built: Built) -> None:
        """All of the tests' files are there, the recorded streams, too."""
        for folder in SHIPPED - {"blkmig"}:
            wanted = {str(path.relative_to(built.source)) for path in (built.source / folder).rglob("*")}
            wanted = {name for name in wanted if (built.source / name).is_file()} - {"tests/disk.raw"}
            assert wanted == {name for name in built.sdist_names() if name.startswith(f"{folder}/")}


class TestWheel:
    def test_is_of_this_python(self, built: Built) -> None:
        tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
        assert built.wheel.name.startswith(f"blkmig-{blkmig.__version__}-{tag}-{tag}-linux_")

    def test_holds_exactly(self, built: Built) -> None:
        info = f"blkmig-{blkmig.__version__}.dist-info"
        about = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE", BILL}
        files = package_files(".py", ".pyi", ".json", "py.typed") | EXTENSIONS | CONTRACT
        man = f"blkmig-{blkmig.__version__}.data/data/share/man/man1/blkmig.1"
        assert built.wheel_names() == files | {f"{info}/{name}" for name in about} | {man}

    def test_bill_of_materials(self, built: Built) -> None:
        """CycloneDX, with what is compiled in; and nothing that differs from build to build."""
        bill = json.loads(built.read_info(BILL))
        assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.6", 1)
        ours, (cython,) = bill["metadata"]["component"], bill["components"]
        assert (ours["name"], ours["version"]) == ("blkmig", blkmig.__version__)
        assert (cython["name"], cython["version"]) == ("Cython", importlib.metadata.version("Cython"))
        assert [each["ref"] for each in bill["dependencies"]] == [ours["bom-ref"], cython["bom-ref"]]
        assert ours["purl"] == f"pkg:pypi/blkmig@{blkmig.__version__}"
        assert "serialNumber" not in bill
        assert "timestamp" not in bill["metadata"]
        assert BILL in built.read_info("RECORD")

    def test_license_text(self, built: Built) -> None:
        assert built.read_info("licenses/LICENSE") == (ROOT / "LICENSE").read_text()

    def test_entry_points(self, built: Built) -> None:
        parser = configparser.ConfigParser(delimiters=("=",))
        parser.read_string(built.read_info("entry_points.txt"))
        assert {name: dict(parser[name]) for name in parser.sections()} == {
            "console_scripts": {"blkmig": "blkmig.cli:main"},
        }  # no pytest11: who has blkmig installed need not want the gates' options in pytest (D6)


class TestMetadata:
    def test_identity(self, built: Built) -> None:
        metadata = built.metadata()
        assert metadata["Name"] == "blkmig"
        assert metadata["Version"] == blkmig.__version__
        assert metadata["License-Expression"] == "GPL-2.0-or-later"
        assert metadata["Requires-Python"] == ">=3.11"
        assert metadata["Description-Content-Type"] == "text/markdown"
        assert not any(line.startswith("License ::") for line in metadata.get_all("Classifier", []))

    def test_requirements(self, built: Built) -> None:
        """Whoever only imports the package gets numpy; everything else is asked for."""
        metadata = built.metadata()
        extras = {"checksums", "cli", "qemu", "verify", "metrics", "completion", "live", "tls", "zstd", "gates"}
        extras |= {"docs", "test", "lint"}
        assert set(metadata.get_all("Provides-Extra", [])) == extras
        always = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
        assert always == ["numpy"]


class TestInstalled:
    def run(self, installed: Path, *command: str, cwd: Path) -> str:
        program, *arguments = command
        done = subprocess.run([installed / program, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def test_import(self, installed: Path, tmp_path: Path) -> None:
        code = "import blkmig, blkmig._core as c; print(blkmig.__version__, c.buffer_is_zero(bytes(99)), c.__file__)"
        version, is_zero, path = self.run(installed, "python", "-I", "-c", code, cwd=tmp_path).split()
        assert (version, is_zero) == (blkmig.__version__, "True")
        assert Path(path).is_relative_to(installed.parent)

    def test_demo(self, installed: Path, tmp_path: Path) -> None:
        """A whole live migration, with the standard library alone, from a source tree that is not built."""
        (tmp_path / "blkmig").mkdir()
        (tmp_path / "blkmig/__init__.py").write_text("raise ImportError('not the one that is installed')")
        self.run(installed, "blkmig", "demo", "--size=16M", "--dir=.", "--progress=plain", cwd=tmp_path)

    def test_man_page(self, installed: Path) -> None:
        assert (installed.parent / "share/man/man1/blkmig.1").read_text() == (ROOT / "docs/man/blkmig.1").read_text()

    def test_module_is_the_command(self, installed: Path, tmp_path: Path) -> None:
        usage = self.run(installed, "python", "-Im", "blkmig", "--help", cwd=tmp_path)
        assert usage.splitlines()[0].startswith("usage: ")
        assert usage.partition("\n")[2] == self.run(installed, "blkmig", "--help", cwd=tmp_path).partition("\n")[2]
