"""Photographs and image-level labels -> a manifest.

ray job submit --working-dir . -- python jobs/import_data.py RECIPE [options of `pmm run`]
"""

import sys

from pmm_ray.cli import app

if __name__ == "__main__":
    app(["run", *sys.argv[1:], "--only", "import_data"])
