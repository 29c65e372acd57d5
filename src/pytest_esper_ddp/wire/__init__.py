"""What both ends of a connection know: messages, and how they travel. Runs in every process."""
