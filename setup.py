"""The packages of a wheel: those under jvdm/, and the folder configs/ as jvdm.configs.

Everything else is in pyproject.toml, where a folder outside of the package cannot be added to those found.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["jvdm", "jvdm.*"]), "jvdm.configs"],
    package_dir={"jvdm.configs": "configs"},
)
