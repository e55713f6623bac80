"""What judges a picture; one folder for each kind of verifier."""
