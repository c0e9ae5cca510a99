"""Which parts of one syntax tree another tree has (Ren et al. 2020, arXiv:2009.10297, section 3.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft_tasks.code_metrics.grammar import nodes_of, parse

if TYPE_CHECKING:
    from tree_sitter import Node

Shapes = dict[tuple[object, ...], int]
"""Numbers of the shapes met so far: what a node is and the numbers of the shapes below it."""


def subtree_match(candidate: str, reference: str, language: str) -> tuple[int, int]:
    """How many subtrees of the reference the candidate has, too, and how many the reference has.

    A subtree is a node that has others below it, with all that is below it, but for the texts of names and literals; so code
    with other names has the same. A subtree that the reference has twice needs to be in the candidate once.

    Args:
        candidate: code without comments.
        reference: likewise.
        language: one of the grammar's languages.
    """
    known: Shapes = {}
    has = set(subtrees(parse(candidate, language).root_node, known))
    wanted = subtrees(parse(reference, language).root_node, known)
    return sum(shape in has for shape in wanted), len(wanted)


def subtrees(root: Node, known: Shapes) -> list[int]:
    """The number of the shape of the root and of each node with nodes below; equal numbers are equal subtrees.

    Two nodes are of one shape where tree-sitter writes the same S-expression for both: punctuation and keywords do not count.
    To write them all would take time and memory of the square of the depth, which bad answers can have.
    """
    nodes = nodes_of(root)
    at = {node.id: i for i, node in enumerate(nodes)}
    numbers = [0] * len(nodes)
    found = []
    for i in reversed(range(len(nodes))):  # what is below a node comes after it
        node = nodes[i]
        below = tuple(
            (node.field_name_for_child(j), numbers[at[child.id]])
            for j, child in enumerate(node.children)
            if child.is_named or child.is_missing
        )
        unexpected = str(node) if node.is_error and not node.child_count else ""  # the character is nowhere else
        numbers[i] = known.setdefault((node.type, node.is_missing, unexpected, below), len(known))
        if i == 0 or node.child_count:
            found.append(numbers[i])
    return found
