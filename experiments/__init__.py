"""Scripts over specjax; run from the checkout as `python -m experiments.NAME`."""
