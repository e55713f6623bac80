"""What turns proposals into images."""
