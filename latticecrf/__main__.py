"""Run a program that imports pydensecrf on this engine.

`python -m latticecrf SCRIPT ARGS...` runs a script, a folder or a zip file,
`python -m latticecrf -m MODULE ARGS...` a module.
"""

from __future__ import annotations

import builtins
import os
import pkgutil
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NoReturn

import latticecrf

_USAGE = "usage: python -m latticecrf SCRIPT ARGS...\n       python -m latticecrf -m MODULE ARGS..."


def main() -> None:
    """Run the program as Python itself would, with `pydensecrf` installed.

    The program's `__main__` is still there when its last line has run: processes that queued work
    starts, threads and exit handlers look there for what it defines.
    """
    arguments = sys.argv[1:]
    asked = arguments[:1] in (["-h"], ["--help"])
    if asked or arguments in ([], ["-m"]):
        print(_USAGE, file=sys.stderr)
        sys.exit(0 if asked else 2)
    folder = latticecrf.install()
    # Programs that this one starts find it, too.
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([folder, inherited] if inherited else [folder])
    sys.argv = arguments
    program, code = _module(arguments) if arguments[0] == "-m" else _script(Path(arguments[0]))
    vars(program)["__builtins__"] = builtins
    sys.modules["__main__"] = program
    exec(code, vars(program))


def _script(path: Path) -> tuple[ModuleType, CodeType]:
    """What a script, or `__main__.py` in a folder or zip file, runs as, and its code."""
    if not path.exists():
        _refuse(f"there is no file {path}")
    place = str(path.absolute())
    importer: Any = pkgutil.get_importer(place)  # None for a script
    # Python put the current folder first, unless the path is to be safe.
    first = [] if sys.flags.safe_path else [str(path.resolve().parent)]
    sys.path[: len(first)] = [place] if importer else first
    if importer:
        return _found(importer.find_spec("__main__"), f"{path} holds no __main__.py")
    program = ModuleType("__main__")
    program.__file__ = place
    return program, compile(path.read_bytes(), place, "exec", dont_inherit=True)


def _module(arguments: list[str]) -> tuple[ModuleType, CodeType]:
    """What a module runs as, and its code; `arguments` are `-m`, its name and those of its own."""
    name = arguments.pop(1)
    try:
        spec = find_spec(name)
        if spec and spec.submodule_search_locations is not None:
            spec = find_spec(f"{name}.__main__")
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise
        spec = None
    found = _found(spec, f"there is no module {name} that can be run")
    arguments[0] = str(found[0].__file__)
    return found


def _found(spec: ModuleSpec | None, complaint: str) -> tuple[ModuleType, CodeType]:
    loader: Any = spec and spec.loader
    code = loader.get_code(spec.name) if spec and loader else None
    if spec is None or code is None:
        _refuse(complaint)
    program = module_from_spec(spec)
    program.__name__ = "__main__"
    return program, code


def _refuse(complaint: str) -> NoReturn:
    print(f"latticecrf: {complaint}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
