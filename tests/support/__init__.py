"""What several test files share: places, images, networks, params. A helper that two files need stands here once."""
