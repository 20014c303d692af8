"""The reference's results faster, or for many texts: generation, scoring, costs."""
