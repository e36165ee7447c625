"""Masks -> scores, wherever there is ground truth.

ray job submit --working-dir . -- python jobs/evaluate.py RECIPE [options of `pmm run`]
"""

import sys

from pmm_ray.cli import app

if __name__ == "__main__":
    app(["run", *sys.argv[1:], "--only", "evaluate"])
