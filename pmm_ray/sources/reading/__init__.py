"""What people and other programs wrote: text, JSON, pickles, the names of files and splits."""
