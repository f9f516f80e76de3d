"""Table 1: does detection pretraining help every detector?

    python experiments/detectors_charades.py

X3D alone; Super-Events and TGM + SE on its features; SlowFast_det and Coarse-Fine, trained in two
stages. Coarse-Fine's fine stream is pretrained for classification in every row, as the paper
recommends; both streams of SlowFast_det have the same pretraining. Every row is compared with the
same detector after classification pretraining.
"""

from ssdet.cli import experiment
from ssdet.studies import Study
from ssdet.studies.paper_detectors import comparison

ARMS, TABLE = comparison(
    {
        "x3d": (20.66, 22.36, 23.94),
        "se": (21.79, 22.24, 23.92),
        "tgm": (23.84, 24.11, 25.50),
        "slowfast": (22.80, 24.73, 25.32),
        "cf": (25.10, 26.19, 26.95),
    },
    "Detectors with classification and detection pretraining",
    "Table 1 (Kinetics-400 to Charades, one run each), under another protocol than the measured "
    "column: 25 frames of a video, classes weighted. Its Coarse-Fine ensemble has fine streams of "
    "several pretrainings.",
)
STUDY = Study("detectors_charades", arms=ARMS, table=TABLE)

if __name__ == "__main__":
    experiment(STUDY)
