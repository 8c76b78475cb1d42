"""`python -m experiments.chat`; the script is specjax/cli/chat.py."""

from specjax.cli.chat import script

if __name__ == "__main__":
    script()
