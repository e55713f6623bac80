"""How the bundled models of the miniature world are trained."""
