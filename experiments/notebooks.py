"""`python -m experiments.notebooks`; the script is tools/notebooks.py."""

from tools.notebooks import script

if __name__ == "__main__":
    script()
