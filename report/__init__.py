"""The pages of `make report` and `make compare`: gathering, drawing, filling in. The words are in templates/."""
