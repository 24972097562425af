"""Boilerplate: one caption over many different images."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from truepair.noise.issues.base import Evidence, Found, Issue
from truepair.noise.issues.text import pieces

SPACES = r"\s+"
DIGITS = r"\p{Nd}+"


def normalised(texts: pa.Array) -> pa.Array:
    """Without regard to case, to runs of blanks, and to which digits there are ("page 2 of 9" is "page 7 of 9")."""
    plain = pc.replace_substring_regex(pc.utf8_lower(texts), pattern=DIGITS, replacement="0")
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(plain, pattern=SPACES, replacement=" "))


def find(evidence: Evidence, threshold: float) -> Found:
    """1 - 1/m, m the different images under the most shared of the row's captions. Memory: the captions, once."""
    score = np.full(len(evidence), np.nan, np.float32)
    found = [(piece.owner, normalised(piece.texts)) for piece in pieces(evidence.captions)]
    texts = pa.chunked_array([text for _, text in found], pa.large_string()).dictionary_encode()
    if not texts.num_chunks:
        return Found(score)
    owner = np.concatenate([rows for rows, _ in found])
    number = np.concatenate([np.asarray(chunk.indices, np.int64) for chunk in texts.chunks])
    said = ~np.asarray(pc.equal(texts.chunk(0).dictionary, ""))[number]
    owner, number = owner[said], number[said]
    _, image = np.unique(evidence.image, return_inverse=True)
    several = int(image.max(initial=0)) + 1
    images = np.bincount(np.unique(number * several + image[owner]) // several)
    np.fmax.at(score, owner, (1 - 1 / images[number]).astype(np.float32))
    return Found(score)


boilerplate_caption = Issue(
    name="boilerplate_caption",
    title="Boilerplate captions",
    explanation=(
        "The same caption stands under more than 10 different images, so it says little about any of them: a shop's "
        "slogan, a notice, a size. Captions are compared without regard to case, blanks and which digits they have, "
        "by their first 1,024 bytes; images are different if their bytes are, so copies of one image in many sizes "
        "count. A short caption may be repeated and still be true (“dog”): look before rewriting. The limit of 10 "
        "images is that of ALIGN (arXiv 2102.05918, section 3)."
    ),
    score_says="1 - 1/m for a caption over m different images: 0 for one of its own, 0.9 for 10",
    threshold=0.905,  # between 10 and 11 images
    action="recaption",
    find=find,
)
