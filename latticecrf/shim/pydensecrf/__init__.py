"""What processes that inherit the path of `latticecrf.install()` import as `pydensecrf`."""

import latticecrf

latticecrf.install()
