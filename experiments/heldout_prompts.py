"""`python -m experiments.heldout_prompts`; the script is specjax/cli/heldout_prompts.py."""

from specjax.cli.heldout_prompts import script

if __name__ == "__main__":
    script()
