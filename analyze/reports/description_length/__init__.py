"""How many bits a row's codes take, and what the reconstruction loses when they are rounded to so many."""
