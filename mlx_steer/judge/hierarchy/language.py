"""Tell whether a text is in another language than it should be, by its function words."""

import re

# Common function words. Some belong to several languages: they count for each of them.
_FUNCTION_WORDS = {
    language: frozenset(words.split())
    for language, words in {
        "english": """
            the a an and of to is are was it that this with for you they from have has be not your
            can which by or as their them there but what how because these we at on in my me so
            will would do does if its when one into about all i'm it's don't can't i'll here""",
        "french": """
            le la les l des et est une un dans que qui pour sur avec il elle nous vous je ce cette
            sont du au aux pas ne ils mais ou par plus leur c'est très être de en à on se son sa
            ses y tu ai suis comme l'eau d'un d'une qu'il j'ai je""",
        "spanish": """
            el la los las de que y en un una es son por para con se su sus del al lo como más pero
            esta este muy está tiene no sí yo te mi puede también hay o a le nos está fue ser estoy
            cuando""",
        "german": """
            der die das und ist ein eine einen nicht ich du sie es wir mit von zu im in auf für den
            dem des sich auch sind wird werden bei aus wie man oder als kann nach nur aber hat
            haben zum zur einem einer an er war so was""",
        "italian": """
            il lo la i gli le di che e è un una uno in per con non sono del della dei delle nel
            nella al alla da si come più ma questo questa anche ha mi se su dal dalla ho l'acqua io
            tu""",
        "portuguese": """
            o a os as de que e é um uma em no na nos nas do da dos das para com não por se mais
            como mas são está ao à também você eu seu sua foi ser""",
    }.items()
}
LANGUAGES = tuple(_FUNCTION_WORDS)
"""The values of a `language` check."""

_LETTERS = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_LAST_LATIN = "\u024f"


def is_foreign(text: str, own: str) -> bool:
    """Whether a text is clearly in another language than `own`, one of LANGUAGES.

    A text without function words, such as one word, is not.
    """
    words = _LETTERS.findall(text.replace("\u2019", "'").casefold())
    letters = "".join(words)
    if sum(letter > _LAST_LATIN for letter in letters) > 0.3 * len(letters):
        return True
    counts = {
        language: sum(word in known for word in words)
        for language, known in _FUNCTION_WORDS.items()
    }
    others = max(count for language, count in counts.items() if language != own)
    # Shared words and quoted names make small leads; a reply in another language has a clear one.
    return others >= 2 and others > 1.5 * counts[own]
