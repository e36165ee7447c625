"""What every stage needs from the machine: storage, tables, images, Ray, errors, progress."""
