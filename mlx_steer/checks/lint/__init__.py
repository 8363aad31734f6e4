"""Checks a behavior's pairs and prompts for what spoils a vector or flatters a measurement.

Reading the files is not enough: pairs whose sides differ in length, punctuation or language give a
vector of that; prompts that repeat a pair's are answered too well; a gate between sets of different
length learns to measure length. Knows texts only, no model.
"""

from mlx_steer.behaviors import Behavior
from mlx_steer.checks.lint.findings import Finding, LintReport, Severity
from mlx_steer.checks.lint.judging import check_judge
from mlx_steer.checks.lint.lengths import length_numbers, pair_lengths, set_lengths
from mlx_steer.checks.lint.likeness import leaks, repeats
from mlx_steer.checks.lint.sets import balance, question_sizes, set_forms, sizes
from mlx_steer.checks.lint.sides import side_differences

__all__ = ["Finding", "LintReport", "Severity", "lint_behavior"]


def lint_behavior(behavior: Behavior) -> LintReport:
    """Check a behavior that loads; the same behavior gives the same report.

    Returns:
        All findings, errors first, and the numbers they rest on.
    """
    if behavior.sentences is not None:  # there are no pairs, and the model is the judge
        checks = [*question_sizes(behavior), *repeats(behavior), *leaks(behavior)]
        checks.sort(key=lambda finding: finding.severity != "error")
        return LintReport(behavior.name, length_numbers(behavior), tuple(checks))
    findings = [
        *sizes(behavior),
        *pair_lengths(behavior),
        *side_differences(behavior),
        *repeats(behavior),
        *leaks(behavior),
        *balance(behavior),
        *set_lengths(behavior),
        *set_forms(behavior),
        *check_judge(behavior),
    ]
    findings.sort(key=lambda finding: finding.severity != "error")
    return LintReport(behavior.name, length_numbers(behavior), tuple(findings))
