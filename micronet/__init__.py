"""The library that the stages share, in rooms.

Imports run one way, from the right to the left: errors, files, params < data, models < training < compress < packed <
scoring < export. Inside of the repository a name is imported from the module where it is defined; the names that users
import stand in the rooms' `__init__` too, and load their module when they are asked for.
"""
