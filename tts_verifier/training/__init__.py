"""How the verifier and the generator learn."""
