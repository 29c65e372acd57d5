"""In the rank: sees its collectives, models and ends, and records them."""
