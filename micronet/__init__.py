"""The library that the stages share, divided into rooms.

Imports go in one direction, from right to left: errors, files, params < data, models < training < compress < packed <
scoring < export. Inside the repository, a name is imported from the module that defines it; public names are also in
the rooms' `__init__`, and load their module on first use.
"""
