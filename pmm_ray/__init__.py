"""PMM-Ray: pixel masks for millions of images from image-level labels, on Ray."""

__version__ = "0.1.0"
