"""The toll and the queue against every static rule, tuned per cell."""
