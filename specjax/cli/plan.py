"""Says what the weights of a checkpoint need in memory, and whether they fit: before they are read.

  python -m experiments.plan --target=TARGET_DIR --mesh=model:4
  python -m experiments.plan --target=TARGET_DIR --mesh=experts:8 --quantize=int8

  python -m experiments.plan --target=llama-3.1-70b --drafter=dflash --topology=v5p:2x2x4,h100:8

With --topology: which mesh of devices that are not here is the best for one text and for many, what
a plain step and a cycle must read and send there, and how long that is predicted to take.

  python -m experiments.plan --target=llama-3.1-70b --training --topology=v5p:4x4x4 --rows=16

The same for training a DFlash drafter: what a device holds and exchanges, and how long a step
takes.

Only the config and the headers of its files are looked at, and the devices of the mesh need not be
there. Exit status 1: the weights do not fit what is free on a device of this machine.
"""

from __future__ import annotations

from specjax.cli.errors import needs_lab, one_line_errors
from specjax.cli.script import Script

with needs_lab():
    from specjax.jobs import planning
    from specjax.lab.records.planned import PodPlan, TrainingPlan
    from specjax.lab.view.planned import COLUMNS, TRAINING_COLUMNS, lines, text, training_lines


def main(options: planning.Options) -> int:
    with one_line_errors():
        if options.training:
            return _training(planning.training.of(options), options)
        if options.topology:
            return _pods(planning.pods.of(options), options)
        made = planning.plan.of(options)
    print("\n".join(planning.table(made)))
    fits, said = planning.verdict(made)
    print(said)
    return 0 if fits else 1


def _pods(plans: list[PodPlan], options: planning.Options) -> int:
    """Prints them. 1: none fits."""
    setup = plans[0].setup
    said = f"{setup.target}, {setup.dtype}, drafter {setup.drafter}"
    said += "" if setup.drafter == "none" else f" (K = {setup.num_draft})"
    print(f"{said}, {setup.context} tokens in {setup.slots} slots; figures of one device")
    print("\n".join(text(COLUMNS, lines(plans))))
    print("\n".join(planning.assumptions([made.chip for made in plans], options.reached)))
    return 0 if any(one.fits for made in plans for one in made.found) else 1


def _training(plans: list[TrainingPlan], options: planning.Options) -> int:
    """Prints them. 1: none fits."""
    print(
        f"A DFlash drafter of 5 layers for {options.target}: texts of {options.seq_len} tokens, "
        f"{options.anchors} blocks of {options.num_draft + 1} in each; figures of one device"
    )
    print("\n".join(text(TRAINING_COLUMNS, training_lines(plans))))
    print("\n".join(planning.training_assumptions(made.chip for made in plans)))
    return 0 if any(one.fits for made in plans for one in made.found) else 1


script = Script("plan", __doc__, planning.Options, main)
