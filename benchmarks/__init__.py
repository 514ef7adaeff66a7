"""What is behind every number of the documentation."""
