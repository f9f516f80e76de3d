"""Cost of planning: CPU seconds for plans of growing size.

    python benchmarks/plan_scale.py [--stages 10000] [--seeds 10]

Arms of the preset `smoke` that differ in the learning rate of pretraining, so that none shares a
stage: each arm and seed has a pretraining, a fine-tuning, a prediction and a probe. The data set is
rendered and read before the clock starts.
"""

import argparse
import sys
import time
from dataclasses import replace

from rich.console import Console

from ssdet.cli.experiment import Options, resolve
from ssdet.studies import Arm, Experiment, Study, plan, pretraining
from ssdet.studies.experiment import Change
from ssdet.studies.graph.record import record_of

STAGES_OF_A_RUN = 4
SHARES = (8, 4, 2, 1)
"""Divisors of the largest plan's size, to show how the cost grows."""


def with_rate(rate: float) -> Change:
    """Pretraining with this learning rate."""

    def change(experiment: Experiment) -> Experiment:
        assert experiment.pretrain is not None
        return pretraining(optim=replace(experiment.pretrain.optim, lr=rate))(experiment)

    return change


def study_of(base: Study, arms: int, seeds: int) -> Study:
    """A study with this number of arms and seeds over the base and data of another one."""
    rates = (1e-4 * (number + 1) for number in range(arms))
    made = tuple(Arm(f"rate {rate:.4f}", with_rate(rate)) for rate in rates)
    return replace(base, arms=made, seeds=tuple(range(seeds)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=10)
    asked = parser.parse_args()
    out = Console(highlight=False)
    base = resolve(Study("scale", (Arm("base"),)), Options(preset="smoke"))
    plan(base)
    for share in SHARES:
        arms = max(1, asked.stages // (share * asked.seeds * STAGES_OF_A_RUN))
        study = study_of(base, arms, asked.seeds)
        began = time.process_time()
        planned = plan(study)
        count, seconds = len(planned.stages), time.process_time() - began
        record_of(planned, 0.0)
        recorded = time.process_time() - began
        out.print(f"{count} stages: {seconds:.2f} s of CPU, with their record {recorded:.2f} s")


if __name__ == "__main__":
    sys.exit(main())
