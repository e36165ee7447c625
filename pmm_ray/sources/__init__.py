"""The outside world -> a manifest: one row per photograph."""
