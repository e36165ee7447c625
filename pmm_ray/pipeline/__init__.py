"""The steps of a run in order, and how they are followed."""
