"""The directive ``motion``: a figure made by ``book/motion/NAME.py``, with a player.

    ```{motion} coupling_layers
    :alt: What it shows, for readers who cannot see it.
    :notebook: What a reader of the notebook is told; JupyterLab prints the directive as it stands.

    The caption.
    ```

A page gets ``motion.js`` and ``motion.css`` only if it has such a figure. The data are a script, since a
page that is opened as a file may not fetch them.
"""

import json
from html import escape
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.osutil import relative_uri

LIMIT = 1_500_000  # bytes of a figure, data and still picture together
LEAST_ALT = 40  # characters, as for every figure of the book

logger = logging.getLogger(__name__)


class motion(nodes.General, nodes.Element):  # noqa: N801 (docutils' nodes are written so)
    """A moving figure; its children are the caption."""


def read(path):
    """The figure's data, ``(window.motionFigures ??= {})["name"] = {...};`` as a dictionary."""
    text = path.read_text(encoding="utf-8")
    return json.loads(text[text.index('= {"') + 2 :].rstrip().rstrip(";"))


def refuse(directive, kind, fault):
    """Warn of a figure that cannot be shown, and put nothing in its place."""
    name = directive.arguments[0]
    logger.warning("%s figure %r: %s", kind, name, fault, location=directive.get_location())
    return []


class Motion(SphinxDirective):
    required_arguments = 1
    option_spec = {  # noqa: RUF012
        "alt": directives.unchanged_required,
        "notebook": directives.unchanged,  # not shown on the site
    }
    has_content = True

    def run(self):
        name, alt = self.arguments[0], self.options.get("alt", "")
        folder = Path(self.env.srcdir) / self.config.html_static_path[0] / "motion"
        data, picture = folder / f"{name}.js", folder / f"{name}.webp"
        for path in (data, picture):
            self.env.note_dependency(str(path))
        fault = ""
        if not (data.is_file() and picture.is_file()):
            fault = f"its files are missing: run `python -m motion.{name}` in book/"
        elif (size := data.stat().st_size + picture.stat().st_size) > LIMIT:
            fault = f"it takes {size:,} bytes, more than {LIMIT:,}"
        elif len(alt) < LEAST_ALT:
            fault = f"its alt text must have {LEAST_ALT} characters or more, got {len(alt)}"
        if fault:
            return refuse(self, "motion", fault)
        movie = read(data)
        node = motion(
            name=name,
            alt=" ".join(alt.split()),
            width=movie["width"],
            height=movie["height"],
        )
        self.set_source_info(node)
        self.state.nested_parse(self.content, self.content_offset, node)
        return [node]


def visit(translator, node):
    builder = translator.builder
    here = builder.get_target_uri(builder.current_docname)
    file = escape(relative_uri(here, f"_static/motion/{node['name']}"))
    size = f'width="{node["width"]}" height="{node["height"]}"'
    picture = f'<img src="{file}.webp" alt="{escape(node["alt"])}" {size}>'
    translator.body.append(
        f'<figure class="motion" data-motion="{escape(node["name"])}">'
        f'<div class="motion-card"><div class="motion-stage">{picture}</div></div>'
        f'<script defer src="{file}.js"></script><figcaption>'
    )


def depart(translator, node):
    translator.body.append(
        "<noscript><p>With JavaScript this figure moves.</p></noscript></figcaption></figure>\n"
    )


def add_player(app, pagename, templatename, context, doctree):
    if doctree is not None and next(iter(doctree.findall(motion)), None) is not None:
        app.add_css_file("motion.css")
        app.add_js_file("motion.js", loading_method="defer")


def setup(app):
    app.add_node(motion, html=(visit, depart))
    app.add_directive("motion", Motion)
    app.connect("html-page-context", add_player)
    return {
        "version": "1",
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
