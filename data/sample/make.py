"""Makes the sample in this folder from the whole of CIFAR-10: `python data/sample/make.py [PATH]`.

The sample is the first 100 training and the first 50 test images of each class, in the official order, as lossless
PNG sheets: 1024 pixels wide, a row an image of 32 x 32 pixels in row-major order, beside a JSON list of labels. PATH
is a folder or archive of CIFAR-10; without it, the sources of `data.source: auto` are tried. The same pixels come
out on every machine; prints the checksums that `micronet/data/datasets.py` holds under SAMPLE.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
PER_CLASS = {"train": 100, "test": 50}


def main(path: str | None, out: Path = HERE) -> None:
    sys.path.insert(0, str(HERE.parents[1]))
    from PIL import Image

    from micronet import params
    from micronet.data.datasets import CLASSES
    from micronet.data.sources import fetch

    config = params.Data(source="path" if path else "auto", path=path)
    _, arrays = fetch(config, report=print)
    for name, share in PER_CLASS.items():
        images, labels = getattr(arrays, f"{name}_images"), getattr(arrays, f"{name}_labels")
        first = [np.flatnonzero(labels == label)[:share] for label in range(len(CLASSES))]
        indices = np.sort(np.concatenate(first))
        images, labels = images[indices], labels[indices]
        sheet = np.ascontiguousarray(images.reshape(-1, 3, 1024).transpose(0, 2, 1))
        Image.fromarray(sheet).save(out / f"{name}.png", compress_level=9)
        (out / f"{name}_labels.json").write_text(json.dumps(labels.tolist(), separators=(",", ":")) + "\n")
        for kind, array in (("images", images), ("labels", labels)):
            print(f'    {name}_{kind}_sha256="{hashlib.sha256(np.ascontiguousarray(array)).hexdigest()}",')


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
