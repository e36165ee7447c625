"""What maps images over Ray, chunk by chunk, and survives what fails."""
