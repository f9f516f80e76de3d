"""Packages of the wheel: ssdet, and the files of experiments/ as the package ssdet.experiments."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["ssdet*"]), "ssdet.experiments"],
    package_dir={"ssdet.experiments": "experiments"},
)
