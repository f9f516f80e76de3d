"""Beyond the paper: smoothness of the mixing masks, as a continuous factor.

    python experiments/ablate_smoothness.py

The paper compares a hard with a seamless boundary (Table A.1b). Here MixUp's ramp covers a share of
the overlap, from 0 (a cut in its middle) to 1 (as in the paper), and CutMix's soft edge a share of
the frame's width on each side of the boundary, from 0 (a hard edge) over the published 1/16 to 1/4.
"""

from ssdet.cli import experiment
from ssdet.studies import Arm, Experiment, Study, Table, augmented, classification
from ssdet.studies.experiment import Change


def edge(share: float) -> Change:
    """CutMix with a soft edge of this share of the width on each side."""

    def change(base: Experiment) -> Experiment:
        assert base.pretrain is not None
        return augmented("cutmix", delta=share * base.pretrain.clip.size)(base)

    return change


STUDY = Study(
    "ablate_smoothness",
    arms=(
        Arm("cls", classification, "classification"),
        *(
            Arm(f"ramp_{percent}", augmented("mixup", ramp=percent / 100), f"MixUp, {percent} %")
            for percent in (0, 25, 50, 75)
        ),
        Arm("ramp_100", augmented("mixup"), "MixUp, 100 % (seamless)"),
        Arm("edge_0", edge(0), "CutMix, hard edge"),
        Arm("edge_16", augmented("cutmix"), "CutMix, 1/16"),
        Arm("edge_8", edge(1 / 8), "CutMix, 1/8"),
        Arm("edge_4", edge(1 / 4), "CutMix, 1/4"),
    ),
    table=Table(
        "Smoothness of masks",
        baseline="cls",
        quoted={"cls": 17.28, "ramp_100": 19.18, "edge_16": 18.99},
        source="Tables A.1b and A.1c (X3D, Kinetics-400 to Charades, dense mAP, one run each).",
    ),
)

if __name__ == "__main__":
    experiment(STUDY)
