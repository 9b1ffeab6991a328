"""The experiments of the paper, repeated and extended: one command each."""
