"""What decides which pictures to draw next; one algorithm a file."""
