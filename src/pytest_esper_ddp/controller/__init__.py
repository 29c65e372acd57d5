"""What runs in pytest's own process."""
