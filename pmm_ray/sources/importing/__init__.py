"""What every import does with its photographs: find and check them, and say what it understood."""
