"""Several runs of one analysis compared: figures over seeds, and how alike their latents are."""
