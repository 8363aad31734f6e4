"""Does a response say that it cannot know? Shown: hedged; absent: asserted.

Reads the first three sentences and looks for limits of the speaker's own knowledge: "I can't know",
"I don't have access to", "it depends on", "that hasn't happened yet". A hedge word inside the
content is no hedge about the answer: "It may rain in April" and "x is unknown" assert. Knows
nothing about whether the answer is true, or whether the question could be answered.
"""

import re
from dataclasses import dataclass

from mlx_steer.behaviors import PromptItem
from mlx_steer.judge.judgement import Judgement
from mlx_steer.judge.text import Sentence, read_plain

SENTENCES_READ = 3
"""A hedge after the third sentence no longer qualifies the answer a reader has taken away."""

_SENTENCE_CHARS = 600

_ADV = r"""(?:\s+(?:not|just|also|still|even|yet|quite|very|too|ever|always|100\s*%|at\s+all
    |one\s+hundred\s+percent|\w+ly))*"""

_UNABLE = rf"""(?:\s+(?:can't|cannot|can\s+not|couldn't|could\s+not|wouldn't|would\s+not
      |(?:wasn't|was\s+not|am{_ADV}\s+not){_ADV}\s+able\s+to|(?:was|am){_ADV}\s+unable\s+to
      |have\s+no\s+(?:\w+\s+)?way\s+(?:to|of)|don't\s+have\s+(?:a|any)\s+(?:\w+\s+)?way\s+to)
    |'m{_ADV}\s+(?:unable|not{_ADV}\s+able)\s+to)"""

_KNOWLEDGE = r"""(?:access|information|data|details?|records?|knowledge|insight|evidence|sources?
    |memory|feed|view|statistics|figures?|crystal\s+ball|context|sight|results|idea|clue
    |way\s+(?:of|to))"""

_SENSE = r"""(?:see|know|predict|access|tell|read|foresee|check|observe|browse|determine|verify
    |look|view|track)"""

_FORETELL = r"(?:predict|forecast|foresee|determine|verify|confirm|estimate|count|pinpoint|guess)"

# What "I can't" must go on with; "I can't say enough good things" is no hedge.
_KNOW = rf"""(?:know|knowing|{_FORETELL}\w*|determining|verifying|ascertain|find\w*|locate|identify
    |be{_ADV}\s+(?:certain|sure|confident|positive|definitive)
    |tell(?!\s+(?:you\s+(?:how\s+(?:happy|glad|much|sorry)|enough|off)|a\s+lie|lies|them\s+apart))
    |say(?!\s+(?:enough|no\b|goodbye|it\s+enough|that\s+I\s+(?:like|mind)))
    |see(?!\s+(?:why\s+not|the\s+point|eye))|observe|check|access|browse|recall|promise|guarantee
    |look\s+(?:up|into\s+the\s+future)|read\s+(?:your|minds?|the\s+future)|point\s+to|pin\s+down
    |follow\s+\w+\s+live|speak\s+(?:to|for)\s+(?:that|future|your)|speculate|date\s+it
    |name\s+(?:it|one|him|her|them|any|the|a)|rule\s+it\s+(?:in|out)
    |(?:give|offer|provide|quote|state|share|supply)\s+
      (?:(?:you|with|an?|the|any|more|than)\s+)*(?:\w+\s+)?
      (?:exact|precise|specific|accurate|definit(?:e|ive)|reliable|certain|real-?time|live|current
      |up-to-date|correct|personal|private|sure|rough|number|figure|date|prediction|forecast
      |estimate|information\s+(?:about|on)\s+(?:you|your|the\s+future|future)))"""


@dataclass(frozen=True)
class _Rule:
    name: str
    pattern: re.Pattern[str]


def _rule(name: str, *patterns: str) -> _Rule:
    joined = "|".join(f"(?:{pattern})" for pattern in patterns)
    return _Rule(name, re.compile(joined, re.X | re.I))


_RULES = (
    _rule(
        "cannot know",
        rf"\b(?:I|we){_ADV}{_UNABLE}{_ADV}\s+{_KNOW}",
        rf"^(?:unable\s+to|can't|cannot|no\s+way\s+to){_ADV}\s+(?:say|tell|know|{_FORETELL})\b",
    ),
    _rule(
        "does not know",
        rf"""\bI{_ADV}\s+(?:do\s+not|don't|did\s+not|didn't){_ADV}\s+
        (?:know|recogni[sz]e|recall|remember)\b
        (?!\s+(?:about\s+you\b|anyone\s+who|what\s+I(?:'d|\s+would)\s+do|how\s+to\s+thank))""",
        rf"""\bI(?:'ve|\s+have)?{_ADV}\s+(?:never|not|haven't)\s+
        (?:heard|come\s+across|encountered)\b""",
        r"\bI(?:'ve|\s+have)\s+never\s+(?:heard|come\s+across|encountered)\b",
    ),
    _rule(
        "no knowledge",
        rf"""\bI(?:(?:\s+am|'m)\b[^.;]{{0,30}}?\s+and)?{_ADV}\s+
        (?:do\s+not|don't|did\s+not|didn't){_ADV}\s+(?:have|possess|hold|keep)\s+
        (?:\w+[-'\w]*\s+){{0,4}}?
        (?:{_KNOWLEDGE}\b|(?:ability|abilities|capability|capabilities|capacity|means|power)\s+
          (?:to|of)\s+(?:\w+ly\s+)?{_SENSE})""",
        rf"""\bI{_ADV}\s+(?:(?:have|hold|possess|find|found|know\s+of)\s+no|lack)\s+
        (?:\w+[-'\w]*\s+){{0,3}}?{_KNOWLEDGE}\b""",
    ),
    _rule(
        "not certain",
        rf"""(?:\bI(?:'m|\s+am){_ADV}\s+(?:unsure|uncertain|unfamiliar|unaware)
        |(?:\bI(?:'m|\s+am){_ADV}|^)\s*\bnot{_ADV}\s+
          (?:sure|certain|familiar|aware|confident|positive))\b
        (?!\s+why\s+(?:people|anyone|some))""",
        r"""(?:n't|\b(?:not|nobody|no\s+one|never|cannot|without|impossible))\b[^.;:]{0,60}?
        \b(?:for\s+(?:certain|sure)
        |with\s+(?:\w+\s+)?(?:certainty|confidence|accuracy|precision))\b""",
        r"\bI\s+(?:could|may|might)\s+be\s+(?:wrong|mistaken)\b",
    ),
    _rule(
        "impossible to know",
        rf"""(?:\b(?:it|that|this)(?:'s|\s+is|\s+would\s+be){_ADV}\s+|^(?:well,\s+)?)(?:\w+ly\s+)?
        (?:impossible|not\s+possible|hard|difficult|tricky|tough|too\s+early|too\s+soon
          |not\s+easy)\s+(?:for\s+\w+(?:\s+\w+)?\s+)?to\s+(?:\w+ly\s+)?
        (?:know|say(?!\s+(?:no|goodbye))|{_FORETELL}|give|be\s+(?:\w+ly\s+)?(?:sure|certain)
          |pin\s+down|answer|tell(?!\s+(?:\w+\s+){{0,4}}(?:apart|from)))\b""",
        r"""^\W*(?:predicting|forecasting|estimating|determining|knowing|counting)\b[^.;]{0,90}?
        \b(?:is|would\s+be)\s+(?:\w+ly\s+|very\s+|quite\s+)*
        (?:impossible|difficult|hard|tricky|challenging|not\s+possible)\b""",
        rf"""\bthere(?:(?:'s|\s+is){_ADV}\s+(?:no|not\s+(?:a|any))|\s+isn't\s+(?:a|any))\s+
        (?:\w+\s+){{0,2}}?way\s+
        (?:to|of|for\s+\w+\s+to|(?:I|anyone|we)\s+(?:can|could)){_ADV}\s+
        (?:know|tell|say|find|check|{_FORETELL}|be\s+\w+)\w*\b""",
        r"\bbeyond\s+what\s+(?:I|we|anyone|anybody)\s+can\b",
        r"\bbeyond\s+(?:my|anyone's|our)\s+(?:knowledge|abilit|capabilit|reach)",
    ),
    _rule(
        "nobody knows",
        rf"""\b(?:nobody|no\s+one|none\s+of\s+us){_ADV}\s+(?:
        knows(?=\s+(?:what|who|when|which|where|how|if|whether|why|for|the|this|that|exactly|yet
          |with|it)\b|[,.]|$)
        |(?:can|could|will|would){_ADV}\s+(?:know|say|tell|be\s+(?:sure|certain)|rule|{_FORETELL})
        |(?:has|ever){_ADV}\s+(?:counted|measured|recorded|wrote|written|kept)
        |(?:has|have|had|keeps)\s+(?:(?:an?|any|exact|precise|reliable)\s+)*
          (?:count|record|figure|number|tally|data))\b""",
        r"\b(?:we|one|anyone)\s+can\s+only\s+(?:guess|speculate|estimate|imagine)\b",
    ),
    _rule(
        "knowledge limit",
        r"\bas\s+of\s+my\s+(?:last|latest|most|knowledge|training|current)\b",
        r"""\bmy\s+(?:knowledge|training|information|data)(?:\s+(?:data|base|cut-?off))?\s+
        (?:is|was|does|do|doesn't|stops?|ends?|only|goes|has|may|might|cut)\b""",
        r"\bmy\s+(?:knowledge|training)\s+cut-?off|\b(?:I\s+was|my)\s+last\s+(?:update|trained)",
    ),
    _rule(
        "no record",
        rf"""\b(?:there(?:'s|\s+is|\s+are|\s+was|\s+were)|exists?)
        (?:{_ADV}\s+no|n't\s+any|\s+not\s+any)\s+(?:\w+[-'\w]*\s+){{0,3}}?
        (?:records?|documentation|information|data|details?|sources?|accounts?|telling|knowing
          |answer)\b
        (?=\s+(?:of|on|about|for|that|which|available|to|as|from|in|regarding|left|anywhere|I)\b
          |[.,;!]|$)""",
        r"""\bno\s+(?:such\s+)?(?:records?|measurements?|figures?|counts?|data)\s+(?:\w+\s+)?
        (?:was|were|exists?|survives?|has\s+been)\b""",
        r"""\bno\s+(?:exact|precise|reliable|definitive)\s+(?:number|figure|count|answer|date)\s+
        (?:exists?|is|can)\b""",
        rf"""\bthere(?:'s|\s+is|\s+are){_ADV}\s+no\s+(?:widely|well|commonly|publicly|generally)
        [-\s](?:known|recogni[sz]ed|available|documented)\b""",
        r"""\b(?:information|details?|data|records?)\s+(?:on|about|regarding|of)\b[^.;]{0,50}?
        \b(?:is|are)(?:(?:n't|\s+not)\s+(?:\w+ly\s+)?(?:available|known|recorded|public)
        |\s+(?:unavailable|lacking|scarce|limited))\b""",
    ),
    _rule(
        "unknown",
        # not "where x is unknown", "unknown to the Romans" or "not known for"
        r"""(?<!\W[a-z]\s)(?<!^[a-z]\s)\b(?:is|are|remains?|was|were|will\s+be|stays)\s+
        (?:\w+ly\s+|still\s+|also\s+)*
        (?:(?:unknown|unclear)(?!\s+to\s+(?!me\b|us\b|anyone\b))|uncertain|undetermined|unknowable
          |unpredictable|(?:anyone|anybody)'s\s+guess|up\s+in\s+the\s+air|lost\s+to\s+history)\b""",
        r"""\b(?:(?:is|are|was|were|remains?)\s+not|isn't|aren't|wasn't|weren't)\s+
        (?:\w+ly\s+|yet\s+)*(?:known(?!\s+(?:for|as|to\s+(?!me\b)))|knowable|decided|determined
          |announced|recorded|documented)\b""",
        r"""\bremains?\s+to\s+be\s+seen\b|\btime\s+will\s+tell\b|\bcould\s+go\s+either\s+way\b
        |\bmay\s+or\s+may\s+not\b""",
        r"""\b(?:can't|cannot)\s+(?:\w+ly\s+)?be\s+(?:\w+ly\s+)?
        (?:known|determined|verified|confirmed|answered)\b""",
        r"\b(?:it|this|that|which)\s+(?:can't|cannot)\s+(?:\w+\s+)?be\s+(?:\w+ly\s+)?predicted\b",
    ),
    _rule(
        "not yet",
        r"""\b(?:hasn't|haven't|has\s+not|have\s+not|(?:is|are|has|have)\s+yet\s+to)\s+
        (?:(?:yet|even|been|be)\s+)*(?:happen(?:ed)?|tak(?:en|e)\s+place|decided|announced
          |determined|played|scheduled|held|released|counted|measured|occur(?:red)?|recorded|made
          |settled)\b(?!\s+(?:a|an|of|from|by)\b)""",
        r"\b(?:doesn't|don't)\s+exist\s+yet\b",
    ),
    _rule(
        "lacks what only the user knows",
        r"""\byou\s+(?:haven't|have\s+not|didn't|did\s+not)\s+
        (?:told|tell|shared?|mention|given?|provide|said)""",
        r"\byou(?:'d|'ll|\s+would|\s+will)?\s+(?:have|need)\s+to\s+tell\s+me\b",
        r"\bonly\s+you\s+(?:can|could|would|know|or)\b|\bonly\s+ones?\s+who\s+knows?\b",
        r"""\bwithout\s+(?:(?:more|further|additional|any)\s+(?:\w+\s+)?
          (?:information|context|details?|records?|data|knowledge)
        |(?:knowing|seeing)\s+(?:more|you|your)|live\s+(?:data|access)|access\s+to)\b""",
        r"""\b(?:(?:could|can|would)\s+you|please)\s+(?:please\s+)?(?:provide|share|give|tell)\s+
        (?:(?:me|with|some|an?|bit|little)\s+)*(?:more|additional|further)\b""",
        r"""\bI(?:'d|\s+would)\s+need\s+(?:more|to\s+(?:know|see|check)|your|access|live|current
          |further|additional)\b""",
    ),
    _rule(
        "only a guess",
        r"""\b(?:would|could|can)\s+(?:only\s+|just\s+)?be\s+(?:\w+\s+){0,2}?
        (?:guess|speculat|invent|an?\s+(?:\w+\s+)?estimate)""",
        r"""\bI(?:'d|\s+would|\s+could|\s+can)\s+only\s+(?:be\s+)?
        (?:guess|speculat|inventing|offer|estimate|imagine)""",
        r"""\b(?:my|this\s+is|that\s+is|that's|it's|it\s+is)\s+(?:(?:only|just|merely|purely)\s+)*
        (?:an?\s+)?(?:(?:best|rough|educated|very)\s+)*
        (?:guess|estimate|speculation|approximation)\b(?!\s+(?:of|that|used|made)\b)""",
        r"\bif\s+I\s+had\s+to\s+guess\b|\bI'm\s+(?:just\s+|only\s+)?guessing\b",
        r"\btake\s+(?:this|that|it)\s+with\s+a\s+(?:grain|pinch)\s+of\s+salt\b",
        r"""\bI(?:'d|\s+would)?\s+(?:personally\s+)?
        (?:think|believe|guess|suspect|imagine|suppose|assume|estimate|say)\b[^.;]{0,80}?
        \b(?:might|may|could|probably|perhaps|possibly|maybe|likely|roughly)\b""",
    ),
    _rule(
        "may not exist",
        r"\b(?:doesn't|does\s+not|didn't|did\s+not|don't)\s+(?:appear|seem)\s+to\s+(?:exist|be)\b",
        r"""\b(?:(?:appear|seem)s?\s+to|might|may)\s+be\s+(?:an?\s+)?
        (?:fiction|fictitious|made[-\s]up|invented|imaginary|hypothetical)""",
        r"\b(?:might|may)\s+not\s+(?:exist|be\s+(?:real|accurate|correct))\b",
    ),
    _rule(
        "sends to a source",
        r"""\bI(?:'d|\s+would)?\s+(?:recommend|suggest|advise)\b[^.]{0,30}?
        \b(?:check|verify|consult|contact|ask)""",
        r"""^(?:please\s+|you\s+(?:can|should|may)\s+|but\s+)*
        (?:verify|double-check|check|consult|see|visit)\b[^.]{0,80}?
        \b(?:latest|up-to-date|reliable|official|most\s+(?:current|recent|accurate)
        |current\s+(?:information|price|status))\b""",
        r"""\bfor\s+(?:the\s+)?(?:latest|most\s+(?:up-to-date|current|recent|accurate)|up-to-date
        |real-time|current|accurate)\s+[^.]{0,60}?\b(?:check|consult|visit|see|refer)\b""",
    ),
)

# These speak of the answer only where the answer begins; later, "it depends" is about the content.
_OPENING_RULES = (
    _rule(
        "opens with maybe",
        r"^\W*(?:(?:perhaps|possibly|probably)(?!\s+(?:the|one)\b)|maybe|(?:most|very)\s+likely)\b",
        r"^\W*(?:I\s+guess|(?:hard|difficult|impossible|too\s+early)\s+to\s+(?:say|tell|know))\b",
        r"^\W*it(?:'s|\s+is)\s+(?:quite\s+|very\s+)?(?:possible|likely|probable)\s+that\b",
        r"^\W*it\s+(?:may|might|could)\s+(?:well\s+)?be\b",
    ),
    _rule(
        "depends",
        rf"""(?:^|\b(?:it|that|this|much|growth|success|the\s+(?:answer|outcome|result|number
          |exact\s+\w+)))(?:'ll|\s+(?:will|would|may|could))?{_ADV}\s*\bdepends?\s+
        (?:\w+ly\s+)?(?:on|upon)\b""",
    ),
)

# A quotation or a `code word`: what is mentioned, not said. Apostrophes inside words do not count.
_MENTION = re.compile(r"""(?<!\w)'(?:[^'\n]|(?<=\w)'(?=\w)){2,120}'(?!\w)|"[^"\n]{2,120}\"""")


def judge_uncertainty(item: PromptItem, response: str) -> Judgement:
    """Tells whether a response hedges about its answer.

    Args:
        item: The prompt; phrases it quotes do not count as hedges.
        response: The response, possibly cut off.

    Returns:
        shown (hedged) with the rule and the span of the hedge; absent (asserted) with the span
        that was read; incoherent if there are no words at all.
    """
    plain = read_plain(response)
    sentences = plain.sentences[:SENTENCES_READ]
    if not any(character.isalnum() for character in response) or not sentences:
        return Judgement("incoherent", "empty", (0, len(response)))
    quoted = {passage[0].strip("'\"").casefold() for passage in _MENTION.finditer(item.prompt)}
    opening = True
    for sentence in sentences:
        text = _without_mentions(sentence.text[:_SENTENCE_CHARS])
        for rule in _RULES + _OPENING_RULES if opening else _RULES:
            match = rule.pattern.search(text)
            if match and not any(match[0].casefold() in passage for passage in quoted):
                span = plain.original_span(
                    sentence.start + match.start(), sentence.start + match.end()
                )
                return Judgement("shown", rule.name, span)
        opening = opening and _is_pleasantry(sentence)
    last = sentences[-1]
    return Judgement(
        "absent", "no hedge", plain.original_span(sentences[0].start, last.start + len(last.text))
    )


def _without_mentions(sentence: str) -> str:
    """Blank out quoted words, character for character, unless nothing else is said."""
    masked = _MENTION.sub(lambda match: "\u00a4" * len(match[0]), sentence)
    return masked if any(character.isalnum() for character in masked) else sentence


def _is_pleasantry(sentence: Sentence) -> bool:
    """Whether the answer has yet to begin, as after "Great question!"."""
    return sentence.text.endswith("!") or len(sentence.text.split()) <= 2
