"""``python -m keystone``: the console script, for those who have no script directory on their path."""

from keystone.cli import main

if __name__ == "__main__":
    main()
