"""What the licences of the scans that something was made from allow: whether it may be passed on, and under which terms."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from latentsynth.errors import DataError
from latentsynth.types import Origin

UNDECLARED = "not declared"
# By the identifier of SPDX (https://spdx.org/licenses) without its version, in small letters: what is asked of whoever passes
# on something made from the scans. Other licences are unknown here, and nothing is refused or promised for them.
_ATTRIBUTION = ("cc-by", "cc-by-sa", "cc-by-nc", "cc-by-nc-sa", "cc-by-nd", "cc-by-nc-nd", "odc-by", "odbl", "apache", "mit", "bsd-2-clause", "bsd-3-clause", "bsd", "cdla-permissive", "cdla-sharing", "etalab", "ogl-uk")  # fmt: skip
_SHARE_ALIKE = ("cc-by-sa", "cc-by-nc-sa", "odbl", "cdla-sharing", "gpl", "agpl", "lgpl")
_FREE = ("cc0", "pddl", "public-domain", "unlicense")
_KNOWN = frozenset({*_ATTRIBUTION, *_SHARE_ALIKE, *_FREE})
# In words, as licences and agreements on data say it.
_NO_DERIVATIVES = re.compile(r"\bno[- ]?deriv|\bnd\b|\bnot? (be )?(modif|adapt)|\bno (modif|adapt)", re.IGNORECASE)
_NO_SHARING = re.compile(
    r"\b(no|non|not|without|never)( to)?( be)?[- ]?(re-?distribut|shar(e|ed|ing)\b)|\bdo not (re-?distribute|share)"
    r"|\ball rights reserved|\bproprietary",
    re.IGNORECASE,
)
_LONG = (("creative-commons", ""), ("attribution", "by"), ("non-?commercial", "nc"), ("share-?alike", "sa"), ("no-?deriv[a-z]*", "nd"))  # fmt: skip
_ADDRESS = re.compile(r"creativecommons\.org/(licenses|publicdomain)/([a-z-]+)")
_VERSION = re.compile(r"[-_ ]+v?\d+(\.\d+)*([-_ ](or[-_ ]later|only))?([-_ ](igo|international|unported))?$")


@dataclass(frozen=True)
class Terms:
    """What a licence asks.

    Attributes:
        known: Whether it is one of the table, or says in words that it forbids something.
        forbids: What it forbids of ``"derivatives"`` and ``"redistribution"``.
        share_alike: What is made from the scans goes out under the same licence.
        attribution: Whoever made the scans is credited.
        noncommercial: No commercial use.
    """

    known: bool
    forbids: tuple[str, ...] = ()
    share_alike: bool = False
    attribution: bool = False
    noncommercial: bool = False

    @property
    def text(self) -> str:
        """In words."""
        asks = {
            f"forbids {' and '.join(self.forbids)}": bool(self.forbids),
            "attribution": self.attribution,
            "share alike: under the same licence": self.share_alike,
            "no commercial use": self.noncommercial,
        }
        said = "; ".join(words for words, holds in asks.items() if holds)
        return said or ("nothing asked" if self.known else "terms unknown to this program: read them")


def terms_of(licence: str) -> Terms:
    """What a licence asks, by its SPDX identifier or in words: ``CC-BY-SA-4.0``, ``CC BY 3.0``, ``no redistribution``."""
    name = _family(licence)
    patterns = (("derivatives", _NO_DERIVATIVES), ("redistribution", _NO_SHARING))
    words = licence.replace("-", " ").replace("_", " ")
    forbids = tuple(what for what, pattern in patterns if pattern.search(words))
    return Terms(
        name in _KNOWN or bool(forbids), forbids, name in _SHARE_ALIKE, name in _ATTRIBUTION, "-nc" in f"-{name}"
    )


def _family(licence: str) -> str:
    """The SPDX identifier without its version, in small letters, as far as it can be told."""
    text = licence.strip().lower()
    if address := _ADDRESS.search(text):
        return "cc0" if address[2] == "zero" else f"cc-{address[2]}"
    name = re.sub(r"[-_\s]+", "-", _VERSION.sub("", text))
    for words, short in _LONG:
        name = re.sub(words, short, name)
    name = name.strip("-")
    return f"cc-{name}" if name.startswith("by") else name


def check_licences(origins: Collection[Origin], accepted: Collection[str] = (), given: str | None = None) -> None:
    """Refuses to pass on what was made from scans whose licence forbids that; warns where nobody declared one.

    Args:
        origins: Where the scans are from.
        accepted: Licences that forbid it and are overruled, by name: a permission of your own.
        given: The licence under which it is passed on, to be warned where a source asks for another; None where it is a text.

    Raises:
        DataError: A licence forbids derivatives or redistribution, or ``accepted`` names one that no scan has.
    """
    absent = sorted(set(accepted) - {origin.licence for origin in origins})
    if absent:
        raise DataError(
            f"--accept-licence {absent[0]!r} is no licence of these scans ({_named(origins)}): name one as it stands there"
        )
    for origin in sorted(origins):
        forbidden = terms_of(origin.licence).forbids
        if forbidden and origin.licence not in accepted:
            raise DataError(
                f"the licence {origin.licence!r} of {origin.credit or 'scans that this was made from'} forbids "
                f"{' and '.join(forbidden)}: leave these scans out, or ask whom they belong to; with their permission give "
                f"--accept-licence {origin.licence!r}"
            )
    unknown = [origin for origin in origins if not terms_of(origin.licence).known]
    if unknown or not origins:
        what = _named(unknown) if origins else UNDECLARED
        warnings.warn(
            f"licence of the scans that this was made from: {what}: whether it may be passed on is for you to know "
            "(`latentsynth prepare --licence` declares one)",
            UserWarning,
            stacklevel=3,
        )
    for origin in sorted(origins):
        if given is not None and terms_of(origin.licence).share_alike and _family(origin.licence) != _family(given):
            text = f"{origin.licence!r} of {origin.credit or 'the scans'} asks for the same licence, and {given!r} is another"
            warnings.warn(f"{text}: give that, or ask whom the scans belong to", UserWarning, stacklevel=3)


def origins_table(origins: Iterable[Origin], accepted: Collection[str] = ()) -> str:
    """Rows of a Markdown table: whom the scans are owed to, their licence and what it asks."""
    rows = [
        f"| {origin.credit or UNDECLARED} | {origin.licence or UNDECLARED} | {terms_of(origin.licence).text}"
        f"{'; overruled by whoever passes this on' if origin.licence in accepted else ''} |"
        for origin in sorted(origins) or [Origin()]
    ]
    return "\n".join(["| scans of | licence | it asks |", "|---|---|---|", *rows])


def _named(origins: Iterable[Origin]) -> str:
    return ", ".join(sorted({origin.licence or UNDECLARED for origin in origins})) or UNDECLARED
