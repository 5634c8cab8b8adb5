"""One import name: the folders of the repository are installed as `sparse_pipeline.harvest`, `sparse_pipeline.train`, …

Here rather than in pyproject.toml, where a folder can be mapped to a package only if every package is listed by hand.
"""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

STAGES = find_packages(
    include=[
        "harvest*",
        "train*",
        "tune*",
        "analyze*",
        "exchange*",
        "explain*",
        "live*",
        "transfer*",
        "models*",
        "shared*",
    ]
)


class BuildWithoutSetup(build_py):
    """The root folder is the package `sparse_pipeline`; this file lies in it and is not part of it."""

    def find_package_modules(self, package, package_dir):
        found = super().find_package_modules(package, package_dir)
        return [module for module in found if module[1] != "setup"]


setup(
    packages=["sparse_pipeline", *(f"sparse_pipeline.{package}" for package in STAGES)],
    package_dir={"sparse_pipeline": "."},
    cmdclass={"build_py": BuildWithoutSetup},
)
