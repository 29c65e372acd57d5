"""Pure functions over N ledgers: what can never complete, since when, and whose doing it is."""
