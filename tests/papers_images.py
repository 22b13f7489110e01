"""Images in DomainNet's layout, made up."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path: Path, width: int, height: int, seed: int) -> None:
    """A JPEG or PNG of large random spots, which compression keeps."""
    spots = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(spots).resize((width, height), Image.Resampling.BICUBIC).save(path)


def write_domainnet(root: Path, domain: str, list_name: str, labels: list[int]) -> list[str]:
    """An image for each label, of different sizes, and their list. Returns its lines."""
    lines = []
    for i, label in enumerate(labels):
        path = f"{domain}/class_{label}/{domain}_{label:03}_{i:06}.jpg"
        write_image(root / path, 40 + i % 7, 50 - i % 5, seed=i)
        lines.append(f"{path} {label}")
    (root / list_name).write_text("\n".join(lines) + "\n")
    return lines
