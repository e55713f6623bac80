"""How an ImageDoctor of any size learns."""
