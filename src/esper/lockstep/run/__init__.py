"""Outside the ranks: starts them, watches them, and ends them."""
