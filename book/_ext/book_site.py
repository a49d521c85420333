"""What the site needs and Jupyter Book's settings cannot say.

The site's and the repository's addresses come from the environment at deploy time; a local build has
neither, and needs neither. Live code (thebe), which Jupyter Book prepares on every page whether it is
wanted or not, is left out: nothing on a page may ask another host for anything.
"""

import os


def drop_thebe(app, pagename, templatename, context, doctree):
    context["script_files"] = [
        script
        for script in context.get("script_files", [])
        if "thebe"
        not in f"{script} {getattr(script, 'attributes', '')}".lower()
    ]


def setup(app):
    app.connect("html-page-context", drop_thebe, priority=900)
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
            "launch_buttons": {"binderhub_url": "https://mybinder.org"},
        }
    return {"parallel_read_safe": True, "parallel_write_safe": True}
