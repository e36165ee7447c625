"""Run a program that imports pydensecrf on this engine: `python -m latticecrf SCRIPT ARGS...`."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import latticecrf


def main() -> None:
    """Run the script as Python itself would, with `pydensecrf` installed."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print("usage: python -m latticecrf SCRIPT ARGS...", file=sys.stderr)
        sys.exit(0 if len(sys.argv) > 1 else 2)
    script = Path(sys.argv[1])
    if not script.exists():
        print(f"latticecrf: there is no file {script}", file=sys.stderr)
        sys.exit(2)
    sys.argv = sys.argv[1:]
    if not sys.flags.safe_path:
        sys.path[0] = str(script.resolve().parent)
    folder = latticecrf.install()
    # Programs that this one starts find it, too.
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([folder, inherited] if inherited else [folder])
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
