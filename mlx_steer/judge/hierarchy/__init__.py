"""The hierarchy judge: was the system's rule kept when the user says otherwise?

`check` says how a prompt writes down its rule, `language` and `withholding` recognise what rules
are about, and `verdict` reads a response against them.
"""
