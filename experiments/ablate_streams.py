"""Tables 2b and A.1e: which stream of a two-stream network gains from detection pretraining?

    python experiments/ablate_streams.py

Two-stream networks with the pretraining of each stream varied, the streams alone, and ensembles.
The paper finds that Coarse-Fine is worse if its fine stream is pretrained for detection.
"""

from ssdet.cli import experiment
from ssdet.studies import Arm, Study, Table, finetuned_as, two_stream
from ssdet.studies.paper_detectors import MEMBERS, PRETRAININGS

CLS, VC = (PRETRAININGS[name][1] for name in ("cls", "cutmix"))
SINGLE = tuple(
    Arm(f"{stream}_{short}", change if stream == "fine" else finetuned_as(stream, change),
        f"{stream} alone, {short}")
    for stream in ("fine", "slow", "coarse")
    for short, change in (("cls", CLS), ("vc", VC))
)  # fmt: skip
SLOWFAST = tuple(
    Arm(f"slowfast_{short}", two_stream("slowfast_det", change, change), f"Slow-Fast, {short}")
    for short, change in (("cls", CLS), ("vc", VC))
)
COARSE_FINE = (
    Arm("cf_cls_cls", two_stream("coarse_fine", CLS, CLS), "Coarse (cls), Fine (cls)"),
    *(
        Arm(
            f"cf_{name}_cls",
            two_stream("coarse_fine", PRETRAININGS[name][1], CLS),
            f"Coarse ({PRETRAININGS[name][0]}), Fine (cls)",
        )
        for name in MEMBERS
    ),
    *(
        Arm(
            f"cf_{name}_{name}",
            two_stream("coarse_fine", PRETRAININGS[name][1], PRETRAININGS[name][1]),
            f"Coarse and Fine ({PRETRAININGS[name][0]})",
        )
        for name in MEMBERS
    ),
)
MIXED = tuple(f"cf_{name}_cls" for name in MEMBERS)
ALIKE = tuple(f"cf_{name}_{name}" for name in MEMBERS)

STUDY = Study(
    "ablate_streams",
    arms=(
        *SINGLE,
        *SLOWFAST,
        *COARSE_FINE,
        Arm("cf_ens_cls", title="Coarse (ensemble), Fine (cls)", members=MIXED),
        Arm("cf_ens_all", title="Coarse (ensemble), Fine (cls and ensemble)",
            members=(*MIXED, *ALIKE)),
        Arm("control", title="ensemble of three cls seeds", seeds_of="cf_cls_cls", size=3),
    ),
    table=Table(
        "Pretraining of each stream",
        baseline="cf_cls_cls",
        quoted={
            "fine_cls": 17.28, "fine_vc": 18.99, "slow_cls": 17.49, "slow_vc": 18.60,
            "coarse_cls": 18.13, "coarse_vc": 18.85, "slowfast_cls": 20.31, "slowfast_vc": 21.22,
            "cf_cls_cls": 23.29, "cf_cutmix_cutmix": 22.83, "cf_cutmix_cls": 23.57,
            "cf_ens_cls": 24.29, "cf_ens_all": 24.61,
        },
        source="Tables 2b and A.1e (Kinetics-400 to Charades, one run each; its Coarse-Fine "
        "numbers most likely of 25 frames a video, the others of every frame).",
        columns=("finetuned", "difference", "quoted", "seeds"),
        groups={
            "streams alone": tuple(arm.name for arm in SINGLE),
            "SlowFast_det": tuple(arm.name for arm in SLOWFAST),
            "Coarse-Fine": (*(arm.name for arm in COARSE_FINE), "cf_ens_cls", "cf_ens_all",
                            "control"),
        },
        against={
            "fine_vc": "fine_cls", "slow_vc": "slow_cls", "coarse_vc": "coarse_cls",
            "slow_cls": "fine_cls", "coarse_cls": "fine_cls",
            "slowfast_vc": "slowfast_cls", "slowfast_cls": "fine_cls", "fine_cls": "cf_cls_cls",
        },
    ),
)  # fmt: skip

if __name__ == "__main__":
    experiment(STUDY)
