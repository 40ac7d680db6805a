"""What a packed file may hold at most: bounds that keep its sums exact, and a hostile file small in time and memory.

ResNet-18 on 32 x 32 images, the largest network that anybody packs here, is what the bounds of size are measured by:
11 M weights and 0.56 G multiply-accumulates; on images of 256 x 256 it takes 36 G. All of them are checked by the table
of the steps alone, before a weight is read or a map is made.
"""

from __future__ import annotations

IMAGE = (3, 32, 32)  # of the input whose row states no other shape
EXACT_FLOAT32 = 1 << 24  # float32 holds every whole number below
MOST_SUM = 1 << 31  # no accumulator reaches it
MOST_REQUANTIZED = 1 << 52  # no requantization reaches it, so that float64 holds it exactly
SHIFT_BITS = 6
MOST_SHIFT = 48

# Of the file
MOST_FILE_BYTES = 1 << 28  # MOST_WEIGHTS of 16 bits, and as much again for all else
MOST_HEADER_BYTES = 1 << 22  # twice a table of MOST_TABLE_BYTES that does not deflate
MOST_TABLE_BYTES = 1 << 21  # MOST_STEPS rows of 500 characters
MOST_TABLE_BEYOND_FILE = 1 << 16  # that the table may inflate to beyond the file's size
MOST_DEPTH = 32  # of lists and objects in one another; a cascade's spec has 4

# Of the table
MOST_STEPS = 4096
MOST_NETWORKS = 16  # every one after the first is for the few images that are left
MOST_CLASSES = 1 << 15  # ImageNet-21k has 21,841
MOST_SIDE = 1024  # kernel, stride, padding; of the image: channels, height, width
MOST_CLASS_NAME = 255  # characters: what a file system lets a folder be called
MOST_LOGIT_SCALE = 1e30  # and one over it: no product with a logit overflows

MOST_ENTRIES = 256  # of a table: the codes of 8 bits

# Of one image
MOST_WEIGHTS = 1 << 26  # six ResNet-18; half a gigabyte in the floats that compute with them
MOST_MAP = 1 << 24  # numbers of a map: 256 channels of 256 x 256; its padding counts
MOST_COLUMNS = (
    1 << 26
)  # numbers that a convolution multiplies, each as often as it is read: twice ResNet-18 at 256 x 256
MOST_LIVE = 1 << 26  # numbers of all maps that are still read: four of the largest
MOST_OF_ALL_MAPS = 1 << 30  # numbers of all maps together: bounds the time of what is no convolution
MOST_OPERATIONS = 1 << 36  # multiply-accumulates and numbers pooled: 120 times ResNet-18, twice that at 256 x 256


def most_channels(payload_bytes: int) -> int:
    """Channels that all steps of a file may have together: bounds what concatenations can allocate."""
    return 2 * payload_bytes + 4096
