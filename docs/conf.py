"""The documentation as a site (`sphinx-build -W -b html docs SITE`) and as manual pages (`-b man`)."""

from igd import VERSION

project = "igd"
copyright = "the authors of igd"  # noqa: A001 - Sphinx calls it so
release = VERSION
extensions = ["myst_parser", "sphinxarg.ext"]
myst_heading_anchors = 4
suppress_warnings = ["myst.domains"]  # the domain of commands cannot be the target of a link by name alone
html_theme = "furo"
html_title = f"igd {VERSION}"
man_pages = [
    ("commands", "igd", "port-mapping gateway for WireGuard servers", "", 8),
    ("configuration", "igd.toml", "configuration of igd", "", 5),
]
