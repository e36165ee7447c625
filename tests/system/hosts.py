"""Hosts on one machine: network namespaces with names and addresses of their own, on one switch."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

_FIRST = 10  # last number of the first host's address; this machine is number 1


def why_not() -> str:
    """Why this machine can have no such hosts; empty: it can."""
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "no ip and tc (Debian's iproute2)"
    tried = subprocess.run(["ip", "netns", "add", "pmm-try"], capture_output=True, text=True)
    if tried.returncode:
        return f"no network namespaces: {tried.stderr.strip()}"
    _ip("netns", "del", "pmm-try")
    return ""


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@dataclass
class Hosts:
    """Namespaces joined by a bridge; `close` takes all of it away.

    Attributes:
        tag: at most 8 characters, of this machine alone; begins the names of what is made.
        network: the first three numbers of all addresses.
        names: of the hosts.
    """

    tag: str
    network: str
    names: tuple[str, ...]
    _made: list[str] = field(default_factory=list)

    def open(self) -> None:
        _ip("link", "add", self.tag, "type", "bridge")
        _ip("addr", "add", f"{self.network}.1/24", "dev", self.tag)
        _ip("link", "set", self.tag, "up")
        known = "".join(f"{self.address(name)} {name}\n" for name in self.names)
        for name in self.names:
            space, here = self._space(name), self._link(name)
            _ip("netns", "add", space)
            self._made.append(name)
            # `ip netns exec` shows it as /etc/hosts: a training's workers look up their own name
            files = Path("/etc/netns") / space
            files.mkdir(parents=True)
            (files / "hosts").write_text(f"127.0.0.1 localhost\n{known}")
            _ip("link", "add", here, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", here, "master", self.tag, "up")
            for command in (
                ("addr", "add", f"{self.address(name)}/24", "dev", "eth0"),
                ("link", "set", "eth0", "up"),
                ("link", "set", "lo", "up"),
            ):
                _ip("-n", space, *command)

    def address(self, name: str) -> str:
        return f"{self.network}.{_FIRST + self.names.index(name)}"

    def prefix(self, name: str) -> tuple[str, ...]:
        """What a command begins with to run on a host."""
        named = f'hostname {name} && exec "$0" "$@"'
        return ("ip", "netns", "exec", self._space(name), "unshare", "--uts", "sh", "-c", named)

    def cut(self, name: str) -> None:
        """Nothing reaches the host, and nothing leaves it."""
        _ip("link", "set", self._link(name), "down")

    def mend(self, name: str) -> None:
        _ip("link", "set", self._link(name), "up")

    def slow(self, name: str, megabits: int) -> None:
        """What goes to a host passes at so many Mbit/s; 0: freely again."""
        link = self._link(name)
        rate = ("tbf", "rate", f"{megabits}mbit", "burst", "64kb", "latency", "400ms")
        what = ("replace", "dev", link, "root", *rate) if megabits else ("del", "dev", link, "root")
        subprocess.run(["tc", "qdisc", *what], check=True, capture_output=True)

    def close(self) -> None:
        for name in self._made:
            _ip("netns", "del", self._space(name))  # and with it both ends of its link
            shutil.rmtree(Path("/etc/netns") / self._space(name))
        _ip("link", "del", self.tag)

    def _space(self, name: str) -> str:
        return f"{self.tag}-{name}"

    def _link(self, name: str) -> str:
        return f"{self.tag}{self.names.index(name)}"
