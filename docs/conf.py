"""The documentation site: `make docs` writes it to docs/build/html."""

import os
from importlib.metadata import version as installed

from docutils import nodes
from docutils.parsers.rst import Directive

project = "convex-heads"
copyright = "the convex-heads contributors"
release = version = installed("convex-heads")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["build"]
templates_path = ["_templates"]
# A name that several classes have, and scikit-learn's own glossary.
suppress_warnings = [
    "ref.python",
    "ref.term",
    "ref.ref",
    "myst.header",
]  # pages that are a section of the README begin at its level

# Docstrings: sections as in Google's style, types from the annotations.
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
autosummary_generate = True
python_use_unqualified_type_names = True
# A public name is described twice, here and with its module. Sources link to the module's page.
viewcode_follow_imported_members = False

html_theme = "furo"
html_title = f"convex-heads {release}"
html_copy_source = False


class CommandLine(Directive):
    """The help of every verb, as a terminal shows it."""

    def run(self):
        """One section a verb."""
        os.environ["COLUMNS"] = "84"
        from typer.main import get_command

        from tasks.verb import EVERY_OPTION
        from tasks.verbs import app

        group = get_command(app)
        found = []
        for name, command in group.commands.items():
            section = nodes.section(ids=[name], names=[name])
            context = command.make_context(name, [], resilient_parsing=True, max_content_width=84)
            context.info_name = f"convex-heads {name}"
            context.meta[EVERY_OPTION] = True
            section += nodes.title(text=name)
            section += nodes.literal_block(text=command.get_help(context), language="none")
            found.append(section)
        return found


def skip_field(app, what, name, member, skip, options):
    """Fields of a named tuple, which say only their number: its docstring has them."""
    return True if (member.__doc__ or "").startswith("Alias for field number") else None


def setup(app):
    """What Sphinx calls."""
    app.add_directive("cli", CommandLine)
    app.connect("autodoc-skip-member", skip_field)
