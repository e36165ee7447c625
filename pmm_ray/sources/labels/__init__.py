"""Image-level labels: class lists, tables of labels, the field's lists of images."""
