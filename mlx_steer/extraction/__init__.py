"""Texts -> vectors and gates."""
