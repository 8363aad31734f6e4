"""Vectors in the formats of other tools, a module each; `formats` chooses between them.

Whatever a format calls its layers, here they are ours: layer i is the output of decoder block i.
Nothing read here is ever run, and no file is believed about its own size.
"""
