"""The site that `make html` makes: the stored notebooks, the pages beside them, and the library's docstrings."""

from bnn_utils import __version__

project = "Bayesian neural networks on one flat vector"
author, copyright = "its authors", "its authors, MIT licence"
release = __version__

# The sources are where they are read on their own: beside each other in the repository, of which this is the root.
root_doc = "docs/index"
include_patterns = ["docs/index.md", "docs/api/*.md", "notebooks/*.ipynb", "notebooks/*.md", "benchmarks/*.md"]
exclude_patterns = [".venv", "build", "**/.ipynb_checkpoints"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]

nb_execution_mode = "off"  # what is stored is what the tests compare with
nb_ipywidgets_js = {}  # explorers need a kernel, and say so
nb_merge_streams = True
default_role = "code"  # in docstrings, as in Markdown
html_extra_path = ["front"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_type_aliases = {"Tensor": "torch.Tensor"}
napoleon_use_rtype = False
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = project
html_domain_indices = False
html_show_sourcelink = False
html_copy_source = False
