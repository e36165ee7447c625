"""What keeps Ray from starting or answering: found within seconds, with the fix."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from pathlib import Path

import pytest

from pmm_ray.config import RunConfig
from pmm_ray.runtime.cluster import doctor, startup
from pmm_ray.runtime.cluster.connect import ClusterResources, connect
from pmm_ray.runtime.core.errors import CannotRunError


def closed_port() -> int:
    with socket.socket() as link:
        link.bind(("127.0.0.1", 0))
        return int(link.getsockname()[1])


def test_a_cluster_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port()}")
    started = time.monotonic()
    with pytest.raises(CannotRunError, match=r"no Ray answers at RAY_ADDRESS=.*unset RAY_ADDRESS"):
        startup.refuse_start(False, "auto")
    assert time.monotonic() - started < 15
    [check] = [c for c in doctor.check_start() if c.name == "Ray's cluster"]
    assert check.fatal
    assert not check.ok
    assert "unset RAY_ADDRESS" in check.advice


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://127.0.0.1:8265", "is the address of a dashboard"),
        ("ray://127.0.0.1:{}", "no Ray answers"),
        ("[::1]:{}", "no Ray answers"),
        ("127.0.0.1:99999", "no such port"),
    ],
)
def test_addresses_of_other_kinds(
    address: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address.format(closed_port()))
    assert reason in startup.address_fault("auto")


def test_a_program_that_is_no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(CannotRunError, match="is no head of a Ray cluster"):
            startup.refuse_start(False, address)


def test_a_head_is_known_by_its_answer(ray_session: ClusterResources) -> None:
    import ray

    assert startup.address_fault(ray.get_runtime_context().gcs_address) == ""


@pytest.mark.parametrize("address", ["auto", "anyscale://somewhere", "local"])
def test_what_only_ray_can_tell_is_left_to_it(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert startup.address_fault(address) == ""


def test_a_temporary_folder_too_deep_for_sockets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deep = tmp_path / ("x" * 60)
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with pytest.raises(CannotRunError, match=r"too long for Ray's sockets: set RAY_TMPDIR=/tmp"):
        startup.refuse_start(True, "local")
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    startup.refuse_start(True, "local")
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/is-not-there")
    assert "not there or not writable" in startup.temporary_folder_fault()


def test_connecting_says_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port()}")
    with pytest.raises(CannotRunError, match="RAY_ADDRESS"), connect("auto", RunConfig().runtime):
        pass


def test_a_home_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/is-not-there")
    assert "set HOME to a folder of your own" in startup.home_fault()
    [check] = [c for c in doctor.check_start() if c.name == "home folder"]
    assert not check.ok
    assert not check.fatal


def test_no_port_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(98, os.strerror(98))

    monkeypatch.setattr(startup.socket.socket, "bind", refuse)
    assert "no free port" in startup.ports_fault()


def test_a_working_folder_over_rays_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(startup, "MOST_WORKING_DIR", 2 << 20)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/model.pt").write_bytes(bytes(3 << 20))
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    assert "add runs (3 MB)" in startup.working_dir_fault(str(tmp_path))
    (tmp_path / ".rayignore").write_text("runs/\n")
    assert startup.working_dir_fault(str(tmp_path)) == ""


def test_links_are_followed_as_ray_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(startup, "MOST_WORKING_DIR", 2 << 20)
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs/a").write_bytes(bytes(3 << 20))
    (tmp_path / "work").mkdir()
    (tmp_path / "work/data").symlink_to(tmp_path / "photographs")
    assert "add data (3 MB)" in startup.working_dir_fault(str(tmp_path / "work"))


def test_a_part_of_the_working_folder_that_may_not_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    (tmp_path / ".rayignore").write_text("locked\n")
    is_file = Path.is_file

    def refuse(path: Path) -> bool:
        # the tests' user may be root, who may read all
        if path.parent == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refuse)
    monkeypatch.chdir(tmp_path)
    [check] = [c for c in doctor.check_start() if c.name == "working folder"]
    assert not check.ok
    assert not check.fatal
    assert f"cannot be sent ({locked}/.gitignore: Permission denied)" in check.value
    assert "make that readable" in check.advice


def test_rays_temporary_folder_is_found_though_no_disk_has_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "gettempdir", full)
    assert startup.temporary_folder() == "/tmp"
    check = doctor.check_disk("disk", tempfile.gettempdir)
    assert check.fatal
    assert not check.ok
    assert "No usable temporary directory" in check.value
