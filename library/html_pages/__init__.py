"""What the HTML pages share: colours, tables, and the environment of their templates (`*.html.jinja`)."""
