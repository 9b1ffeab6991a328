"""`python -m wardrop.games`, the same as `wardrop games`."""

from wardrop.games.cli import app

if __name__ == "__main__":
    app(prog_name="wardrop games")
