"""What the site needs and Jupyter Book's settings cannot say.

The site's and the repository's addresses come from the environment at deploy time; a local build has
neither, and needs neither. Live code (thebe), which Jupyter Book prepares on every page whether it is
wanted or not, is left out: nothing on a page may ask another host for anything.

Names of the package in code, such as ``gf.AffineCoupling``, lead to their entry in the API reference. They
are found in the highlighted HTML, where each part of a name is a span of its own. (sphinx-codeautolink
does more, but stops at the untitled sections inside exercises, and parses with each cell all those
above it, which trebles the time of a build.)
"""

import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from _bundle import bundle, chapters

COLAB_BRANCH = "colab"  # where the publishing workflow pushes notebooks that install what they need
BLOCK = re.compile(r'<div class="highlight"><pre>.*?</pre>', re.DOTALL)
PART = r'<span class="o">\.</span><span class="\w+">[A-Za-z]\w*</span>'
NAME = re.compile(rf'<span class="n">gf</span>(?:{PART})+|<span class="nn">gauss_flows[\w.]*</span>')


def drop_thebe(app, pagename, templatename, context, doctree):
    context["script_files"] = [
        script
        for script in context.get("script_files", [])
        if "thebe" not in f"{script} {getattr(script, 'attributes', '')}".lower()
    ]


def link_names(app, pagename, templatename, context, doctree):
    """The first mention of each public name in a block of code becomes a link to its entry."""
    objects = app.env.domains["py"].objects

    def link(found, seen):
        spans = re.findall("<span.*?</span>", found[0])
        for end in range(len(spans), 0, -2):  # the longest part that has an entry
            code = "".join(spans[:end])
            name = re.sub(r"^gf\.", "gauss_flows.", re.sub("<.*?>", "", code))
            if name in objects:
                if name in seen:
                    break
                seen.add(name)
                entry = objects[name]
                page = app.builder.get_relative_uri(pagename, entry.docname)
                rest = "".join(spans[end:])
                return f'<a class="name" href="{page}#{entry.node_id}">{code}</a>{rest}'
        return found[0]

    def block(found):
        seen = set()
        return NAME.sub(lambda name: link(name, seen), found[0])

    if "body" in context:
        context["body"] = BLOCK.sub(block, context["body"])


def mend_roles(app, pagename, templatename, context, doctree):
    """What a screen reader is told: entries of the list of sources, and a table's empty corner."""
    if "body" in context:
        context["body"] = (
            context["body"]
            .replace('role="doc-biblioentry"', 'role="listitem"')
            .replace('<th class="head"><p></p></th>', "<td></td>")
        )


def shorten_defaults(app, what, name, obj, options, signature, returns):
    """A default that is an object, such as an activation, shows as an ellipsis: its repr says nothing."""
    return signature and re.sub(r"=<[^<>]*>", "=...", signature), returns


def offer_zip(app, pagename, templatename, context, doctree):
    """A chapter is downloaded with the files that it reads, and opened on Colab from a branch of its own."""
    if context.get("page_source_suffix") != ".ipynb":
        return
    buttons = [button for group in context.get("header_buttons", []) for button in group.get("buttons", [])]
    for button in buttons:
        if button.get("label") == "download-source-button":
            button |= {
                "url": f"{Path(pagename).name}.zip",
                "text": ".zip",
                "tooltip": "Download the notebook and what it reads",
            }
        if button.get("text") == "Colab":
            button["url"] = button["url"].replace("/blob/main/", f"/blob/{COLAB_BRANCH}/")


def write_zips(app, exception):
    """Each chapter's zip lies beside its page."""
    if exception is None and app.builder.format == "html":
        for notebook in chapters():
            target = Path(app.outdir, "book", f"{notebook.stem}.zip")
            target.write_bytes(bundle(notebook))


def setup(app):
    app.connect("html-page-context", offer_zip, priority=900)
    app.connect("build-finished", write_zips)
    app.connect("autodoc-process-signature", shorten_defaults)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("html-page-context", link_names)
    app.connect("html-page-context", mend_roles)
    site = os.environ.get("BOOK_SITE_URL")
    repository = os.environ.get("BOOK_REPOSITORY_URL")
    if site:
        app.config.html_baseurl = site.rstrip("/") + "/"
    if repository:
        app.config.html_theme_options |= {
            "repository_url": repository,
            "repository_branch": "main",
            "path_to_docs": ".",
            "use_repository_button": True,
            "use_issues_button": True,
            "launch_buttons": {
                "binderhub_url": "https://mybinder.org",
                "colab_url": "https://colab.research.google.com",
            },
        }
    return {"parallel_read_safe": True, "parallel_write_safe": True}
