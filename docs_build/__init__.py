"""The pages of the documentation site that are made from the code, each time it is built: `make docs`.

`hooks.py` is what `mkdocs.yml` names. `settings.py` makes the reference of settings, `records.py` that of records,
`commands.py` that of commands, `gallery.py` the pages of methods. `links.py` lets pages link to files outside `docs/`.
"""
