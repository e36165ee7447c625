"""What keeps Ray from starting or answering, found before the call: each a sentence, at once.

Ray itself waits ten minutes for a cluster that is gone, and shows its own tracebacks for the rest.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from pmm_ray.runtime.core.errors import CannotRunError

# of a head that is there answers come in milliseconds; a far one takes a second
ANSWER_SECONDS = 5.0
# Linux' limit of a socket's path, less what Ray puts below its folder for the longest process id
_SOCKET_PATH = 107
_LONGEST_BELOW = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
# Ray's own limit of what it sends to the nodes
MOST_WORKING_DIR = 512 << 20
# what a program that speaks HTTP/2, as every head does, answers to an empty frame of settings
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS_FRAME = 4


def refuse_start(local: bool, address: str) -> None:
    """Refuse what Ray would wait for or fail on.

    Args:
        local: whether a Ray is to be started on this machine.
        address: else that of the cluster; `auto` is that of `RAY_ADDRESS`.

    Raises:
        CannotRunError: with the fix.
    """
    fault = temporary_folder_fault() if local else address_fault(address)
    if fault:
        raise CannotRunError(fault)


def address_fault(address: str) -> str:
    """Why no cluster answers at an address; empty where one does, or where only Ray can tell."""
    named = address == "auto"
    place = os.environ.get("RAY_ADDRESS", "") if named else address
    scheme, _, rest = place.rpartition("://")
    host, _, port = rest.partition("/")[0].rpartition(":")
    origin = "RAY_ADDRESS" if named else "--address"
    fix = (
        "start the cluster, or "
        + ("unset RAY_ADDRESS" if named else "leave --address out")
        + " to run on this machine"
    )
    if scheme in ("http", "https"):
        return (
            f"{origin}={place} is the address of a dashboard, which takes jobs: name it "
            "RAY_API_SERVER_ADDRESS, and here the head itself, such as 10.0.0.1:6379"
        )
    if scheme not in ("", "ray") or not host or not port.isdecimal():
        return ""  # `auto`, and what only Ray knows
    try:
        if int(port) >= 1 << 16:
            raise OverflowError("there is no such port")  # it would be taken modulo 65536
        with socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS) as link:
            if scheme or os.environ.get("RAY_USE_TLS", "0") not in ("", "0") or _speaks_http2(link):
                return ""
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return f"no Ray answers at {origin}={place} ({reason}): {fix}"
    return f"what answers at {origin}={place} is no head of a Ray cluster: {fix}"


def _speaks_http2(link: socket.socket) -> bool:
    link.settimeout(ANSWER_SECONDS)
    try:
        link.sendall(_PREFACE)
        head = link.recv(9)
    except OSError:
        return False
    return len(head) > 3 and head[3] == _SETTINGS_FRAME


def temporary_folder() -> str:
    """Where a Ray of this machine keeps its sockets and logs, by its own rule."""
    named = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR")
    return (named or "/tmp").rstrip("/")


def temporary_folder_fault() -> str:
    """Why Ray cannot work in its temporary folder; empty where it can."""
    folder = temporary_folder()
    longest = len(os.fsencode(folder + _LONGEST_BELOW))
    if longest > _SOCKET_PATH:
        return (
            f"the temporary folder {folder} is {longest - _SOCKET_PATH} characters too long for "
            "Ray's sockets: set RAY_TMPDIR=/tmp"
        )
    if not Path(folder).is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return f"the temporary folder {folder} is not there or not writable: set RAY_TMPDIR=/tmp"
    return ""


def home_fault() -> str:
    """Why libraries cannot keep their files at home; empty where they can."""
    home = Path(os.environ.get("HOME") or "~").expanduser()
    if home.is_dir() and os.access(home, os.W_OK | os.X_OK):
        return ""
    return f"HOME={home} is not there or not writable: set HOME to a folder of your own"


def ports_fault() -> str:
    """Why this machine has no port for Ray's processes; empty where it has."""
    try:
        with socket.socket() as link:
            link.bind(("127.0.0.1", 0))
    except OSError as error:
        return f"no free port on 127.0.0.1 ({error.strerror}): end programs that hold them"
    return ""


def working_dir_fault(folder: str) -> str:
    """Why a working folder cannot be sent to the nodes; empty where it can, or is none.

    It is gone through as Ray itself does: links are followed, and a folder that may not be read is
    a fault also where `.rayignore` names it. What `.gitignore` and `.rayignore` name is not
    counted. Ray's limit is that of the packed folder, so what stays below here is always taken.
    """
    import logging

    from ray._private.runtime_env.packaging import _dir_travel

    sizes: dict[str, int] = {}

    def count(path: Path) -> None:
        if path != root and path.is_file():
            top = path.relative_to(root).parts[0]
            sizes[top] = sizes.get(top, 0) + path.stat().st_size

    quiet = logging.getLogger("pmm_ray.working_dir")  # Ray would name every file it leaves out
    quiet.setLevel(logging.ERROR)
    try:
        root = Path(folder).absolute()
        if not root.is_dir():
            return ""
        _dir_travel(root, [], count, include_gitignore=True, logger=quiet)
    except OSError as error:
        return (
            f"the working folder cannot be sent ({error.filename or folder}: {error.strerror}): "
            "make that readable, move it elsewhere, or change to another folder"
        )
    total = sum(sizes.values())
    if total <= MOST_WORKING_DIR:
        return ""
    named = sorted(sizes, key=lambda name: -sizes[name])[:3]
    shown = ", ".join(f"{name} ({sizes[name] >> 20} MB)" for name in named)
    return (
        f"the working folder {root} has {total >> 20} MB, and Ray sends at most "
        f"{MOST_WORKING_DIR >> 20} MB, packed: add {shown} to .rayignore"
    )
