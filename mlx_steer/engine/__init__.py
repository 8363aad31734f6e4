"""Token ids -> hidden states, tokens and scores: steering, capture, prefill, decoding."""
