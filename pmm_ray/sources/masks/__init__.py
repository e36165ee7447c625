"""Masks and ground truth of others: where they are, what their values mean, of which images."""
