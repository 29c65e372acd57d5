"""What runs in the zygote and in the ranks forked from it."""
