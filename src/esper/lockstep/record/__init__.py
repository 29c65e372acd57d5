"""What a rank leaves behind: its ledger and audits, written in the rank and read from outside."""
