"""teacher.py, on images that do not fit into memory: they are read at every pass."""

import teacher

from common import datasets


def main(argv):
    datasets.RESIDENT_BYTES = 0
    return teacher.main(argv)
