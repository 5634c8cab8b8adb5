"""Cache → run: coders, their losses and penalties, and the loop that trains them."""
