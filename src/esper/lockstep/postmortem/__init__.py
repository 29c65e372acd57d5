"""After the end, from the files alone: the answer that whoever had watched the run would have given."""
