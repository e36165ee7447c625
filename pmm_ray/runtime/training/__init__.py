"""What trains a network on Ray Train and resumes exactly."""
