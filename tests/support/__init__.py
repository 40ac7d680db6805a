"""Shared by several test files: places, images, networks, params. A helper that two files need is here once."""
