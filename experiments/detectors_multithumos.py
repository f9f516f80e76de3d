"""Table 3: does detection pretraining help detectors of dense sports videos?

    python experiments/detectors_multithumos.py

X3D alone, TGM + SE and PDAN on its features. `--data multithumos` gives the paper's table; on
Moving Shapes the stages of X3D and TGM + SE are shared with `detectors_charades.py`.
"""

from ssdet.cli import experiment
from ssdet.studies import Study
from ssdet.studies.paper_detectors import comparison

ARMS, TABLE = comparison(
    {"x3d": (37.17, 38.92, 40.88), "tgm": (39.16, 41.55, 43.15), "pdan": (39.20, 42.13, 44.35)},
    "Detectors with classification and detection pretraining, MultiTHUMOS",
    "Table 3 (Kinetics-400 to MultiTHUMOS, every frame, one run each).",
)
STUDY = Study("detectors_multithumos", arms=ARMS, table=TABLE)

if __name__ == "__main__":
    experiment(STUDY)
