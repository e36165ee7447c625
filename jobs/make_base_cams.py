"""First classifier -> class activation maps of the training split, for the base masks.

python jobs/make_base_cams.py --recipe FILE [options of `pmm run`]

The same line after `ray job submit --working-dir . --` or `python jobs/submit.py --` runs on a
cluster; see cluster/README.md.
"""

from pmm_ray.cli.jobs import run_job

if __name__ == "__main__":
    run_job("make_base_cams")
