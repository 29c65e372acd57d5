"""In a rank of a job that nobody watches from outside: a thread that does."""
