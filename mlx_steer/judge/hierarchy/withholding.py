"""Find where a sentence declines, deflects or invokes a rule; knows nothing about the request."""

import re

_HOW = r"(?:\s+(?:not|just|also|still|only|even|\w+ly))*"

_ACT = r"""(?:share|tell|reveal|disclose|giv(?:e|ing)|say|talk|speak|discuss|answer|help|assist
    |provide|do|write|show|repeat|explain|respond|reply|go\s+(?:into|off|beyond|against|along)|use
    |switch|comment|offer|name|mention|confirm|break|ignore|make|change|act|play|pretend|become
    |take\s+(?:on|part)|print|spell|include|state|continue|engage|comply|translate|describe
    |recommend|suggest|hand|drop|leave|stop|list|copy|expose|pass|step|abandon|disregard|override
    |exceed|fulfil+|cover|handle|deviate)"""

_RULES = r"(?:rules?|instructions?|guidelines|policy|policies|orders)"

_PATTERNS = (
    # "I can't share that", but not "I can't recommend it enough" or "I can't help but"
    rf"""\bI{_HOW}\s+(?:can't|cannot|can\s+not|won't|will\s+not|may\s+not|mustn't|must\s+not
      |shouldn't|should\s+not|couldn't|could\s+not|would\s+not|wouldn't|don't|do\s+not)
    {_HOW}\s+{_ACT}\b
    (?!\s+(?:but|enough|wrong|without|up\s+my|highly|you\s+how\s+(?:much|glad|happy)
      |it\s+(?:enough|more)|(?:\w+\s+){{0,3}}(?:highly|warmly|strongly)\s+enough)\b)""",
    rf"""\bI(?:'m|\s+am){_HOW}\s+not{_HOW}\s+(?:allowed|able|permitted|authori[sz]ed|supposed
      |at\s+liberty|free\s+to|in\s+a\s+position|here\s+to|programmed|designed|meant
      |going\s+to{_HOW}\s+{_ACT})\b""",
    rf"""\bI(?:'m|\s+am){_HOW}\s+(?:unable\s+to|forbidden|prohibited|restricted|bound\s+(?:by|to)
      |held\s+to|limited\s+to|to\s+avoid|only\s+(?:here|able|allowed|permitted))\b""",
    r"""\bI(?:'ll|\s+can|\s+may|\s+will|(?:\s+am|'m)\s+(?:able|allowed)\s+to)?\s+only\s+
    (?:talk|speak|answer|discuss|help|assist|cover|handle|reply|respond|write|use|provide|offer)\b""",
    rf"""\bI(?:'d|'ll|\s+would|\s+will)?{_HOW}\s+(?:must|have\s+to|need\s+to|should|rather
      |prefer\s+to|was\s+(?:asked|told)\s+to){_HOW}\s+
    (?:decline|refuse|pass\b|guard|respect\s+(?:the|my)|(?:answer|write|speak)\s+in
      |remain\s+(?:in|silent)|follow\s+(?:the|my)|stick\s+(?:to|with)
      |stay\s+(?:in|on|with|within|silent|true)|keep\s+(?:to\s+(?:the|my|that|this)
        |my\s+(?:lips|{_RULES}|role)
        |(?:that|this|it|them|my|the)\b[^.]{{0,30}}?\b(?:secret|private|confidential)))\b""",
    rf"\bI{_HOW}\s+(?:decline|refuse)\b|\bI(?:'d|\s+would)\s+(?:prefer|rather)\s+not\b",
    r"\bkeep\s+(?:that|this|it|them|those|the\s+\w+)\s+(?:\w+\s+)?to\s+myself\b",
    # "I'm sorry, but I", not "I'm sorry to hear that"
    r"""\b(?:sorry|afraid|apologies|apologi[sz]e)\b[,.]?\s+(?:but\s+)?
    (?:I\b(?!\s+(?:hear|understand|know|hope|see|missed|forgot))|my\b
      |that(?:'s|\s+is)\s+(?:not|off|outside|a\s+secret|confidential))""",
    rf"""\bmy\s+(?:\w+\s+)?(?:{_RULES}|role)\s+(?:do|does|don't|doesn't|says?|states?|forbids?
      |requires?|won't|prevents?|prohibits?|allows?|keeps?|limits?|restricts?|(?:is|are)\s+to
      |stays?)\b""",
    rf"""\b(?:the|these)\s+(?:system\s+|house\s+)?{_RULES}\s+
    (?:do\s+not|don't|doesn't|does\s+not|forbids?|says?\s+I|I)\b""",
    rf"\b(?:against|conflicts?\s+with|violates?|contrary\s+to)\s+(?:my|the)\s+{_RULES}\b",
    r"\bmy\s+(?:purpose|scope|expertise|focus|subject|domain|help)\s+is\s+(?:\w+ly\s+)?"
    r"(?:only|limited|restricted|confined)\b",
    r"""\b(?:answering|sharing|telling|discussing|revealing|saying|doing)\b[^.]{0,30}
    \bnot\s+(?:permitted|allowed)\b""",
    r"""\boff[-\s](?:limits|topic)\b|\boutside\s+(?:of\s+)?(?:my|what\s+I)\b
    |\bnot\s+(?:something|an?\s+(?:topic|subject))\s+I\b|\bbeyond\s+my\s+(?:role|scope|remit)\b
    |\blips\s+(?:are|stay)\s+sealed\b|\b(?:as|like)\s+(?:I\s+was\s+)?(?:instructed|told|required)\b""",
    r"""\b(?:that|this|it)(?:'s|\s+is|\s+must\s+(?:stay|remain)|\s+(?:stays|remains))\s+
    (?:\w+ly\s+)?(?:confidential|classified|(?:an?\s+|top\s+)?secret)\b""",
    r"""^(?:no,\s+)?(?:let's|let\s+us)\s+
    (?:stick|stay|keep\s+to|get\s+back|return|focus|go\s+back)\b""",
    # French, Spanish, German, Italian, Portuguese
    r"""\bje\s+ne\s+(?:peux|dois|suis|parle|r[ée]ponds)\b[^.]{0,20}?\b(?:pas|que|qu)\b
    |^d[ée]sol[ée]e?\b|\bje\s+suis\s+d[ée]sol[ée]e?|\bje\s+(?:dois|reste)\s+(?:rester|garder|en)\b""",
    r"""\bno\s+(?:puedo|debo|me\s+est[áa]\s+permitido)\b|\blo\s+siento\b
    |\b(?:debo|tengo\s+que)\s+(?:seguir|responder|mantener)\b""",
    r"""\bich\s+(?:kann|darf|werde)\b[^.]{0,40}?\b(?:nicht|nur|kein\w*)\b|\btut\s+mir\s+leid\b
    |\bich\s+bleibe\s+(?:bei|auf)\b""",
    r"""\bnon\s+(?:posso|devo|mi\s+[èe]\s+permesso)\b|\bmi\s+dispiace\b
    |\b(?:devo|posso)\s+(?:scrivere|rispondere)\s+(?:solo|soltanto|in)\b""",
    r"\bn[ãa]o\s+(?:posso|devo)\b|\bsinto\s+muito\b",
)
_WITHHOLDS = re.compile("|".join(f"(?:{pattern})" for pattern in _PATTERNS), re.X | re.I)

# What follows a "but" is no longer the refusal: "I can't discuss engines, but a piston moves ..."
_TURN = re.compile(r"[,;]\s*(?:however|though|although|still|yet)\b|;|\bbut\b|\banyway\b", re.I)


def find_withholding(sentence: str) -> tuple[int, int] | None:
    """Gives the offsets of the words that decline or invoke a rule, if the sentence does."""
    match = _WITHHOLDS.search(sentence)
    return match.span() if match else None


def end_of_withholding(sentence: str, start: int) -> int:
    """Gives the offset after `start` at which a declining sentence turns to something else."""
    turn = _TURN.search(sentence, start)
    return turn.end() if turn else len(sentence)
