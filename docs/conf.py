"""The documentation as a site: `make docs` builds it into site/, without a network and with nothing from one."""

project = "latentsynth"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "latentsynth"
html_copy_source = False
html_show_sphinx = False
smartquotes = False
exclude_patterns = ["images"]

myst_heading_anchors = 4
nb_execution_mode = "off"  # docs/tour.ipynb comes with its outputs

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {
    "members": True,
    "inherited-members": "Module, ModelMixin, ConfigMixin, PushToHubMixin, Dataset, BaseModel",
    "show-inheritance": True,
}
