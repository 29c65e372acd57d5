"""Ranks on several hosts: what these tell each other through the job's store, and which of them judges."""
