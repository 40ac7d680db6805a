"""Upper bounds on a packed file: they keep its sums exact, and a hostile file small in time and memory.

The yardstick for sizes is ResNet-18 on 32 x 32 images, the largest network anybody packs here: 11 M weights and 0.56 G
multiply-accumulates, or 36 G on 256 x 256 images. All bounds are checked by the table of steps alone, before a weight
is read or a map is allocated.
"""

from __future__ import annotations

IMAGE = (3, 32, 32)  # of an input whose row gives no shape
EXACT_FLOAT32 = 1 << 24  # float32 represents every integer below it exactly
MOST_SUM = 1 << 31  # every accumulator stays below it
MOST_REQUANTIZED = 1 << 52  # every requantization stays below it, so float64 represents it exactly
SHIFT_BITS = 6
MOST_SHIFT = 48

# Of the file
MOST_FILE_BYTES = 1 << 28  # MOST_WEIGHTS of 16 bits, and as much again for the rest
MOST_HEADER_BYTES = 1 << 22  # twice an incompressible table of MOST_TABLE_BYTES
MOST_TABLE_BYTES = 1 << 21  # MOST_STEPS rows of 500 characters
MOST_TABLE_BEYOND_FILE = 1 << 16  # how far the table may inflate beyond the file's size
MOST_DEPTH = 32  # nesting of lists and objects; a cascade's spec has 4

# Of the table
MOST_STEPS = 4096
MOST_NETWORKS = 16  # every one after the first handles the few images that are left
MOST_CLASSES = 1 << 15  # ImageNet-21k has 21,841
MOST_SIDE = 1024  # kernel, stride, padding; of the image: channels, height, width
MOST_CLASS_NAME = 255  # as long as a file system lets a folder name be
MOST_LOGIT_SCALE = 1e30  # and its reciprocal: no product with a logit overflows

MOST_ENTRIES = 256  # of a table: the codes of 8 bits

# Of one image
MOST_WEIGHTS = 1 << 26  # six ResNet-18; half a gigabyte as the floats that compute with them
MOST_MAP = 1 << 24  # numbers in a map: 256 channels of 256 x 256; its padding counts
MOST_COLUMNS = (
    1 << 26
)  # numbers that a convolution multiplies, each as often as it is read: twice ResNet-18 at 256 x 256
MOST_LIVE = 1 << 26  # numbers in all maps still to be read: four of the largest
MOST_OF_ALL_MAPS = 1 << 30  # numbers in all maps together: bounds the time of all steps but convolutions
MOST_OPERATIONS = 1 << 36  # multiply-accumulates and pooled numbers: 120 times ResNet-18, twice that at 256 x 256


def most_channels(payload_bytes: int) -> int:
    """Channels that all steps of a file may have together: bounds the memory that concatenations can take."""
    return 2 * payload_bytes + 4096
