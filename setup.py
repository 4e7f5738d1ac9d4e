"""Everything about the project is in setup.cfg, but for one thing that it cannot say beside `packages = find:`.

The folder configs/ at the top of the checkout is also the package mixaug.configs of a wheel.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["mixaug", "mixaug.*"]), "mixaug.configs"],
    package_dir={"mixaug.configs": "configs"},
)
