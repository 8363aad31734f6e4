"""How much the engine has under way at a time; by these bounds, too, memory is estimated."""

# Prompt tokens run through the network at a time; bounds the activations of a prefill.
PREFILL_TOKENS = 8192
# Below this many shared tokens a head of its own saves less than the extra calls cost.
SHORTEST_HEAD = 8
# Of prompts and responses together, in extraction: bounds the caches that are held.
TOKENS_AT_ONCE = 8192
# Responses scored together: enough to fill two cores, and more would only lose more when a run is
# stopped.
SCORED_TOGETHER = 24
# Logits held at a time in scoring: rows x tokens x vocabulary.
LOGITS_AT_ONCE = 50_000_000


def tokens_per_pass(metal: bool) -> int:
    """Tokens of one pass in extraction: enough to fill a GPU.

    Two CPU cores are full with fewer, and small passes are more even in length.
    """
    return 2048 if metal else 512
