"""One run against another: what got better, what worse, and what cannot be told apart from noise."""
