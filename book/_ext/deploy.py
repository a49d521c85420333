"""What only the publishing workflow knows: the site's address and the repository's.

Both come from the environment at deploy time; a local build has neither, and needs neither.
"""

import os


def setup(app):
    site, repository = (
        os.environ.get("BOOK_SITE_URL"),
        os.environ.get("BOOK_REPOSITORY_URL"),
    )
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
