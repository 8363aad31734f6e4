"""Safe YAML that is not nested deeply, because PyYAML takes hours for 100 KB of `[`."""

from __future__ import annotations

from typing import Any

import yaml

_DEEPEST = 50


class BoundedLoader(yaml.SafeLoader):
    """Reads plain values; refuses lists and objects in brackets that are nested too deeply."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        """Called for every opening bracket."""
        # For each token the scanner looks at every bracket that is open.
        if self.flow_level >= _DEEPEST:
            problem = f"lists and objects are nested more than {_DEEPEST} deep"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.get_mark())
        super().fetch_flow_collection_start(TokenClass)
