"""Facts of a running router in a terminal, rendered by rich: `wardrop top`, `wardrop receipt`."""
