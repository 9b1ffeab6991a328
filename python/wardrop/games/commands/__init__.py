"""One command of `wardrop games` a module; `report` is how they all print."""
