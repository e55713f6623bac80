"""Published figures on the test split of RichHF-18K, to be printed beside measured ones.

Sources. All but RAHF: the ImageDoctor paper (arXiv 2510.01010), its table of PLCC on RichHF-18K
and its ablation, as quoted by a public note; what the note does not quote is absent. RAHF: the
README of the public reproduction of RichHF. All of them are on 955 real pictures, so they say
nothing about other data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

SOURCE: Final = (
    "published on RichHF-18K's test split (arXiv 2510.01010; RAHF: the README of its repository)"
)


@dataclass(frozen=True, slots=True)
class PublishedMethod:
    """The figures of one method, as far as they are known."""

    name: str
    """As published."""
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """As `evaluate.figures` returns them."""


def _published(
    name: str,
    plcc: tuple[float, ...] = (),
    srcc: tuple[float, ...] = (),
    averages: tuple[float, float] | None = None,
    maps: Mapping[str, Mapping[str, float]] | None = None,
) -> PublishedMethod:
    aspects = ("plausibility", "aesthetics", "semantic_alignment", "overall")
    found: dict[str, dict[str, float]] = {aspect: {} for aspect in aspects}
    for measure, values in (("plcc", plcc), ("srcc", srcc)):
        for aspect, value in zip(aspects, values, strict=bool(values)):
            found[aspect][measure] = value
    if averages:
        found["average"] = dict(zip(("plcc", "srcc"), averages, strict=True))
    return PublishedMethod(name, found | {n: dict(m) for n, m in (maps or {}).items()})


_MEASURES: Final = ("mse", "mse_empty", "cc", "kld", "sim", "nss", "auc_judd")

PUBLISHED: Final = (
    _published("ResNet-50", (0.495, 0.370, 0.108, 0.337), averages=(0.328, 0.319)),
    _published("CLIP", (0.390, 0.357, 0.398, 0.353), averages=(0.374, 0.370)),
    _published("PickScore", (0.010, 0.131, 0.346, 0.202), averages=(0.172, 0.183)),
    _published(
        "RichHF",
        (0.693, 0.600, 0.474, 0.580),
        averages=(0.586, 0.582),
    ),
    _published(
        "RAHF",
        (0.739, 0.629, 0.565, 0.642),
        (0.726, 0.621, 0.564, 0.634),
        maps={
            "artifact": dict(
                zip(_MEASURES, (0.00724, 0.00078, 0.525, 1.649, 0.339, 2.029, 0.905), strict=True)
            ),
            "misalignment": dict(
                zip(_MEASURES, (0.00324, 0.00035, 0.232, 2.848, 0.104, 1.256, 0.797), strict=True)
            ),
        },
    ),
    _published(
        "ImageDoctor",
        (0.727, 0.681, 0.808, 0.745),
        averages=(0.741, 0.724),
        maps={"artifact": {"cc": 0.571}, "misalignment": {"cc": 0.225}},
    ),
)
"""In the order of the paper's table; RAHF, the reproduction, stands beside RichHF."""
