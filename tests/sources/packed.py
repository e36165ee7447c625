"""Small archives, for the tests of downloads and of their extraction."""

from __future__ import annotations

import io
import tarfile
import zipfile


def zipped(**files: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name.replace("__", "/"), data)
    return out.getvalue()


def tgz(*contents: bytes) -> bytes:
    """An archive of the files `a`, `b`, ..."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in zip("abc", contents, strict=False):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


CONTENT = zipped(train2014__a=bytes(range(256)) * 40)
