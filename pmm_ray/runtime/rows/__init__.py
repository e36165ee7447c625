"""What the rows of our tables hold, and how it is read: photographs, masks, scores."""
