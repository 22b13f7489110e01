"""The site: `make docs` writes it to results/docs, with warnings as errors."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import tpgm_jax

project = "tpgm_jax"
author = "the authors of tpgm_jax"
version = release = tpgm_jax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "extensions.code_blocks",
    "extensions.code_host",
    "extensions.docstrings",
    "extensions.mathml",
]
exclude_patterns = ["_build"]
# For each page its captions, and the pages below them.
contents = {
    "index": {
        "Use": [
            *("start", "active", "choosing", "cli", "frameworks/index", "cost", "trouble", "faq"),
            *("recipes", "trainers", "wrappers", "pods", "pytorch", "methods", "api"),
        ],
        "Results": ["results", "papers", "sentiment", "study", "benchmarks"],
        "Project": ["changelog", "contributing", "releasing"],
    },
    "frameworks/index": {
        "Frameworks": [
            *("tunix", "kauldron", "gemma", "maxtext", "easydel", "keras", "haiku", "equinox"),
            *("penzai", "flax", "log"),
        ],
    },
}
# Equations in docstrings and output of programs have no language; blocks of code name theirs.
highlight_language = "none"

# The button copies code without prompts and without output.
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"
napoleon_attr_annotations = False  # they are written out, unions of a dozen types
napoleon_numpy_docstring = False
# `make docs` is strict about our own names. Those of other projects would have to be looked up on
# the network.
nitpick_ignore_regex = [("py:.*", r"(?!tpgm_jax\.).*")]

html_theme = "furo"
html_title = f"tpgm_jax {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_copyright = False
