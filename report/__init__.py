"""The pages of `make report` and `make compare`: what is gathered, drawn, filled in. Words are in templates/."""
