"""The paper's experiments, again and further: one command each."""
