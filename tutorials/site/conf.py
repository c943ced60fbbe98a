"""Configuration of the site that `build.py` makes."""

from genailab_pyro import __version__

project = "genailab_pyro"
author = "The genailab_pyro authors"
release = __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
html_theme = "furo"
html_title = f"genailab_pyro {__version__}"
html_static_path = ["_static"]
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
mathjax_path = "mathjax/tex-svg.js"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_excludepatterns = ["tutorials/solutions/*"]  # they are run by the tests
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
autosummary_generate = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_use_rtype = False
napoleon_attr_annotations = False
napoleon_use_ivar = True  # attributes are properties and fields, which are listed by themselves
exclude_patterns = ["_build"]
nitpicky = False
