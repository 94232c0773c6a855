# SPDX-License-Identifier: GPL-2.0-or-later
"""A real QEMU with ``tls-creds-x509`` at either end of a stream over ``tls:``."""

from __future__ import annotations

from pathlib import Path

import command
import peers
import pytest
import real_qemu
import tls
from real_qemu import MiB, Qemu

peers.require("qemu-system-x86_64", "qemu-img", "openssl")
if not real_qemu.has_block_migration():
    peers.lacking("this QEMU has no live block migration any more; 9.0 was the last one")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tls.make_certificates(tmp_path_factory.mktemp("tls") / "pki", host="localhost")


def arguments(certificates: Path, image: Path, end: str) -> list[str]:
    """Return what gives a QEMU one drive, and the certificates of this end of a migration."""
    credentials = f"tls-creds-x509,id=tls0,dir={certificates},endpoint={end},verify-peer=on"
    drive = f"file={image},format=raw,id=drive0,if=none"
    return ["-object", credentials, "-drive", drive, "-device", "virtio-blk-pci,drive=drive0"]


def source_of(folder: Path) -> Path:
    contents = real_qemu.pattern(5 * MiB + 1536, seed="tls", holes=lambda block: block == 2)
    return real_qemu.create_raw(folder / "source.raw", contents)


@pytest.mark.parametrize("options", [[], ["--no-return-path"], ["--verify"], ["--max-bandwidth", "16M"]])
def test_to_qemu(certificates: Path, tmp_path: Path, options: list[str]) -> None:
    source = source_of(tmp_path)
    image = real_qemu.create_raw(tmp_path / "copy.img", bytes(source.stat().st_size))
    with Qemu(*arguments(certificates, image, "server"), folder=tmp_path, incoming=True) as vm:
        vm.set_parameters(tls_creds="tls0")
        uri = vm.listen().replace("tcp:127.0.0.1", "tls:localhost")
        words = ["--json", "--progress=none", "--tls-certificates", str(certificates), *options]
        outcome = command.run("send", *words, f"drive0={source}", uri)
        assert outcome.exit_code == 0, f"{outcome.stderr}{vm.log}"
        assert vm.wait_migration() == "completed"
        vm.quit()
    assert outcome.result["format"] == "block"
    real_qemu.compare(source, image)


@pytest.mark.parametrize("return_path", [False, True])
@pytest.mark.parametrize("machine", ["pc", "pc-i440fx-2.2"])
def test_from_qemu(certificates: Path, tmp_path: Path, return_path: bool, machine: str) -> None:
    """QEMU closes its end without a goodbye: behind the stream's end that is none that is missed."""
    source, copy = source_of(tmp_path), tmp_path / "copy.raw"
    listening = ["--tls-certificates", str(certificates), "--allow-peer", "client"]
    sizes = ["--size", str(source.stat().st_size)]
    with (
        command.receiver("tls:127.0.0.1:0", f"drive0={copy}", *sizes, *listening) as receiver,
        Qemu(*arguments(certificates, source, "client"), folder=tmp_path, machine=machine) as vm,
    ):
        vm.set_parameters(tls_creds="tls0", tls_hostname="localhost", downtime_limit=0)
        vm.set_capabilities(return_path=return_path)
        vm.migrate(receiver.uri.replace("tls:", "tcp:"))
        assert vm.wait_migration() == "completed"
        outcome = receiver.finish()
        vm.quit()
    assert outcome.exit_code == 0, outcome.stderr
    assert copy.read_bytes() == source.read_bytes()


def test_a_qemu_that_is_cancelled_leaves_no_copy(certificates: Path, tmp_path: Path) -> None:
    source = real_qemu.create_raw(tmp_path / "source.raw", real_qemu.pattern(48 * MiB, seed="cancelled"))
    with (
        command.receiver(
            "tls:127.0.0.1:0", f"drive0={tmp_path}/copy.raw", "--tls-certificates", str(certificates)
        ) as receiver,
        Qemu(*arguments(certificates, source, "client"), folder=tmp_path) as vm,
    ):
        vm.set_parameters(tls_creds="tls0", tls_hostname="localhost", downtime_limit=0, max_bandwidth=8 * MiB)
        vm.migrate(receiver.uri.replace("tls:", "tcp:"))
        vm.wait_until(lambda: vm.execute("query-migrate").get("disk", {}).get("transferred", 0) > 0, "the first bytes")
        vm.execute("migrate_cancel")
        assert vm.wait_migration() == "cancelled"
        outcome = receiver.finish()
    assert outcome.exit_code == 5, outcome.stderr
    assert not (tmp_path / "copy.raw").exists()


@pytest.mark.parametrize("end", ["client", "server"])
def test_who_has_another_authority_is_refused(certificates: Path, tmp_path: Path, end: str) -> None:
    """Each end says so, and the receiver goes on to wait."""
    others = tls.make_certificates(tmp_path / "others", host="localhost")
    source = source_of(tmp_path)
    if end == "client":
        with (
            command.receiver(
                "tls:127.0.0.1:0", f"drive0={tmp_path}/copy.raw", "--tls-certificates", str(certificates)
            ) as receiver,
            Qemu(*arguments(others, source, "client"), folder=tmp_path) as vm,
        ):
            vm.set_parameters(tls_creds="tls0", tls_hostname="localhost")
            vm.migrate(receiver.uri.replace("tls:", "tcp:"))
            assert vm.wait_migration() == "failed"
            assert receiver.process.poll() is None
            return
    image = real_qemu.create_raw(tmp_path / "copy.img", bytes(source.stat().st_size))
    with Qemu(*arguments(others, image, "server"), folder=tmp_path, incoming=True) as vm:
        vm.set_parameters(tls_creds="tls0")
        uri = vm.listen().replace("tcp:127.0.0.1", "tls:localhost")
        outcome = command.run("send", "--tls-certificates", str(certificates), f"drive0={source}", uri)
    assert outcome.exit_code == 5
    assert "certificate of the other end is not accepted" in outcome.stderr
