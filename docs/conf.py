"""Builds the documentation: `make docs`."""

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "smf_jax"
author = "the smf_jax authors"
release = metadata.version("smf-jax")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "generated_pages",
    "mathml",
]
exclude_patterns = ["_build"]
nitpicky = True
# Types in signatures are those of other libraries, whose pages are not at hand.
nitpick_ignore_regex = [("py:.*", ".*")]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# `make tutorials` executes the notebooks, and stores their outputs.
nb_execution_mode = "off"
nb_merge_streams = True

autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
napoleon_use_rtype = False

html_math_renderer = "mathml"
html_theme = "sphinx_book_theme"
html_title = "smf_jax"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_theme_options = {
    "show_toc_level": 2,
    "use_fullscreen_button": False,
    "use_download_button": False,
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the sidebar has the search field
}


def setup(app):
    """Shortens the name of JAX's array type in signatures."""

    def shorten(app, what, name, obj, options, signature, returns):
        texts = (signature, returns)
        return tuple(
            text and text.replace("jaxlib._jax.Array", "Array") for text in texts
        )

    app.connect("autodoc-process-signature", shorten)
