"""A drop-in for the package pydensecrf: the same names, arguments and results.

`latticecrf.install()` puts it under that name. Where pydensecrf reads beyond an array or ends the
process, this raises `ValueError`; arrays of any layout and floating type are taken.
"""

from latticecrf.pydensecrf import densecrf, utils

__all__ = ["densecrf", "utils"]
