"""METEOR, by the Java program that pycocoevalcap brings: the figure COCO's papers print beside CIDEr."""

import shutil
from collections.abc import Sequence

from truepair.errors import UserError


def meteor(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> float:
    """Corpus METEOR 1.5 in [0, 1] of n candidates, each with references, as words (`ptb_words`).

    Raises UserError if pycocoevalcap or Java is missing, or the program gives up.
    """
    try:
        from pycocoevalcap.meteor.meteor import Meteor
    except ImportError:
        raise UserError("METEOR needs pycocoevalcap: pip install 'truepair[coco]'") from None
    if shutil.which("java") is None:
        raise UserError("METEOR needs Java, which is not on the PATH")
    said = {image: [" ".join(words)] for image, words in enumerate(candidates)}
    known = {image: [" ".join(words) for words in several] for image, several in enumerate(references)}
    program = Meteor()
    try:
        return float(program.compute_score(known, said)[0])
    except (OSError, ValueError) as error:
        program.lock.release()  # held where it gave up; its end waits for it
        raise UserError(f"METEOR's program gave no scores: {error!r}") from error
