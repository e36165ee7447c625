"""Every stage of a recipe.

ray job submit --working-dir . -- python jobs/run_pipeline.py RECIPE [options of `pmm run`]
"""

import sys

from pmm_ray.cli import app

if __name__ == "__main__":
    app(["run", *sys.argv[1:]])
