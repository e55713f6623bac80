"""How the bundled models are made: data, stages, figures. Not needed to use them."""
