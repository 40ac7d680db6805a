"""The library that the stages share, divided into packages.

Each imports only from those to its left: errors, files, params < data, models < training < compress < packed < scoring
< export. Inside the repository, a name is imported from the module that defines it; public names are also in the
packages' `__init__`, and load their module on first use.
"""
