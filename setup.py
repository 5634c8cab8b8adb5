"""One import name: the folders of the repository are installed as `sparse_pipeline.harvest`, `sparse_pipeline.train`, …

Here rather than in pyproject.toml, because setuptools can map a folder to a package there only with every package
listed by hand.
"""

from setuptools import find_packages, setup

STAGES = find_packages(include=["harvest*", "train*", "analyze*", "shared*"])

setup(
    packages=["sparse_pipeline", *(f"sparse_pipeline.{package}" for package in STAGES)],
    package_dir={"sparse_pipeline": "."},
)
