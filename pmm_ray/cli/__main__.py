"""`python -m pmm_ray.cli`."""

from pmm_ray.cli import main

main()
