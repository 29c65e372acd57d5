"""From a finding to the record and the sentence."""
