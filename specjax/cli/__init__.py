"""Command lines: one file a script, over the functions of `specjax.jobs`.

A script is a record of options, whose fields are its flags and the fields of its --config
(`specjax.core.options`), and a ``main`` that takes one: see `script.Script`.
"""
