"""The description of the package's page: README.md with links that lead there from anywhere. Everything else is in pyproject.toml."""

import re
from pathlib import Path

from setuptools import setup

REPOSITORY = "srm-kernels/srm-kernels"
README = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
# Pictures first, whose files must come as they are.
README = re.sub(r"!\[([^]]*)\]\((?!https?:)([^)]+)\)", rf"![\1](https://raw.githubusercontent.com/{REPOSITORY}/main/\2)", README)
README = re.sub(r"\]\((?!https?:|#)([^)]+)\)", rf"](https://github.com/{REPOSITORY}/blob/main/\1)", README)

setup(long_description=README, long_description_content_type="text/markdown")
