"""The directive ``live``: a figure that computes in the page, over a still picture.

    ```{live} train
    :alt: What the still picture shows, for readers who cannot see it.
    :options: {"pattern": "fixed"}
    :notebook: What a reader of the notebook is told; JupyterLab prints the directive as it stands.

    The caption.
    ```

The scripts lie in ``_static/live``: the engine, what all figures share, and one file per figure. They are
classic scripts, since a page that is opened as a file may load no modules; a page gets the engine and the
figures that it has. In the built site they are minified. ``python book/_stills.py`` takes the pictures.
"""

import json
from html import escape
from pathlib import Path

import rjsmin
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective
from sphinx.util.osutil import relative_uri

from motion import LEAST_ALT

SHARED = ("bijectors", "network", "flow", "data", "training", "page")


class live(nodes.General, nodes.Element):  # noqa: N801 (docutils' nodes are written so)
    """A live figure; its children are the caption."""


class Live(SphinxDirective):
    required_arguments = 1
    option_spec = {  # noqa: RUF012
        "alt": directives.unchanged_required,
        "options": directives.unchanged_required,
        "notebook": directives.unchanged,  # not shown on the site
    }
    has_content = True

    def run(self):
        name, alt = self.arguments[0], " ".join(self.options.get("alt", "").split())
        folder = Path(self.env.srcdir) / self.config.html_static_path[0] / "live"
        still, script = folder / f"{name}.webp", folder / f"{name}.js"
        for path in (still, script):
            self.env.note_dependency(str(path))
        options, fault = self.options.get("options", "{}"), ""
        try:
            json.loads(options)
        except ValueError as error:
            fault = f"its options must be JSON: {error}"
        if not script.is_file():
            fault = f"its script is missing: _static/live/{name}.js"
        elif not still.is_file():
            fault = "its still picture is missing: run `python book/_stills.py`"
        elif len(alt) < LEAST_ALT:
            fault = f"its alt text must have {LEAST_ALT} characters or more, got {len(alt)}"
        if fault:
            return refuse(self, "live", fault)
        node = live(name=name, alt=alt, options=options)
        self.set_source_info(node)
        self.state.nested_parse(self.content, self.content_offset, node)
        return [node]


def visit(translator, node):
    builder = translator.builder
    here = builder.get_target_uri(builder.current_docname)
    still = escape(relative_uri(here, f"_static/live/{node['name']}.webp"))
    translator.body.append(
        f'<figure class="live" data-live="{escape(node["name"])}" data-options="{escape(node["options"])}">'
        f'<div class="live-card"><img src="{still}" alt="{escape(node["alt"])}"></div><figcaption>'
    )


def depart(translator, node):
    translator.body.append(
        "<noscript><p>With JavaScript you can change the settings of this figure.</p></noscript>"
        "</figcaption></figure>\n"
    )


def add_scripts(app, pagename, templatename, context, doctree):
    figures = sorted({node["name"] for node in doctree.findall(live)}) if doctree is not None else []
    if figures:
        app.add_css_file("live.css")
        for name in (*SHARED, *figures):
            app.add_js_file(f"live/{name}.js", loading_method="defer")


def minify(app, exception):
    """Remove comments and indents from the scripts of the built site; the sources keep them."""
    if exception is None and app.builder.format == "html":
        for path in Path(app.outdir, "_static", "live").glob("*.js"):
            path.write_text(rjsmin.jsmin(path.read_text(encoding="utf-8")), encoding="utf-8")


def setup(app):
    app.add_node(live, html=(visit, depart))
    app.add_directive("live", Live)
    app.connect("html-page-context", add_scripts)
    app.connect("build-finished", minify)
    return {
        "version": "1",
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
