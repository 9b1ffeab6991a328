"""The ramp of `wardrop demo --ramp`: load across the knee of the engines and back."""
