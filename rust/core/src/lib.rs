//! Routing core: what a router must know and decide, free of Python, I/O and clocks.
