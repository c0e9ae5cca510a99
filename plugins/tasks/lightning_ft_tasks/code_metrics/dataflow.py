"""Where the values of variables come from (Ren et al. 2020, arXiv:2009.10297, section 3.3; Guo et al. 2021, arXiv:2009.08366).

Every name and literal of a program is a place, numbered in the order of the text. `comesFrom` leads from a place that reads a
variable to the places where it may have got its value, and from a declared name to its initial value; `computedFrom` from an
assigned name to what stands on the right. Branches are walked from the same state and their states united; the body of a loop
is walked twice, so that what it assigned reaches its own beginning. As the paper leaves the details open, they are those that
the published evaluation code shows: what it makes of a program is what is made of it here (but for the order of several
sources of one place, which there differs from process to process, and here is that in which they were found).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lightning_ft_tasks.code_metrics.grammar import parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tree_sitter import Node

State = dict[str, tuple[int, ...]]
"""Places where each variable may have got its value."""
_WHOLE = ("string_literal", "string", "character_literal")
"""Nodes that are one place, though the grammar has nodes below them."""
_MOST_VISITS = 100_000
"""Nodes walked in one program: loops within loops double the walks, which is no longer code that anybody compares."""


@dataclass(frozen=True)
class Rules:
    """What the nodes of a language mean, by the names that its grammar gives them."""

    declarations: frozenset[str]
    """A name with its initial value, the fields `name` and `value`."""
    assignments: frozenset[str]
    """What is on the `left` is computed from what is on the `right`."""
    alternatives: frozenset[str]
    """Children of an if statement that are walked from the state before it, not after the children before them."""
    updates: frozenset[str] = frozenset()
    """Every place below is computed from every one, as in `i++`."""
    loops: frozenset[str] = frozenset()
    """All children are walked twice."""
    heads: frozenset[str] = frozenset()
    """A child of a for statement behind which its children are walked twice."""
    iterations: frozenset[str] = frozenset()
    """A `name` is computed from a `value`, then the `body` runs, both twice."""
    as_one: bool = False
    """Whether an assigned name has one flow from all of its sources, in their order and with repetitions, even from none."""
    onward: bool = True
    """Whether children behind the first alternative are alternatives, too."""
    falls_through: bool = False
    """Whether an if statement with an else may also change nothing."""


def _set(*names: str) -> frozenset[str]:
    return frozenset(names)


RULES = {
    "python": Rules(
        declarations=_set("default_parameter"),
        assignments=_set("assignment", "augmented_assignment", "for_in_clause"),
        alternatives=_set("elif_clause", "else_clause"),
        loops=_set("while_statement"),
        as_one=True,
        onward=False,
    ),
    "java": Rules(
        declarations=_set("variable_declarator"),
        assignments=_set("assignment_expression"),
        alternatives=_set("if_statement", "else"),
        updates=_set("update_expression"),
        loops=_set("while_statement"),
        heads=_set("local_variable_declaration"),
        iterations=_set("enhanced_for_statement"),
    ),
    "javascript": Rules(
        declarations=_set("variable_declarator"),
        assignments=_set("assignment_pattern", "augmented_assignment_expression"),
        alternatives=_set("if_statement", "else"),
        updates=_set("update_expression"),
        loops=_set("while_statement"),
        heads=_set("variable_declaration"),
        falls_through=True,
    ),
    "go": Rules(
        declarations=_set("var_spec"),
        assignments=_set("assignment_statement"),
        alternatives=_set("if_statement", "else"),
        updates=_set("inc_statement"),
        heads=_set("for_clause"),
        falls_through=True,
    ),
}
"""The languages whose data flow can be compared."""


@dataclass
class Flow:
    """Where one place's value comes from."""

    place: int
    name: str
    relation: str
    names: list[str] = field(default_factory=list)
    """Texts of the sources, each once where several flows were united."""
    places: list[int] = field(default_factory=list)
    """Places of the sources."""

    def __add__(self, other: Flow) -> Flow:
        """Both sources, under the name and relation of the later flow."""
        names, places = dict.fromkeys(self.names + other.names), dict.fromkeys(self.places + other.places)
        return Flow(self.place, other.name, other.relation, list(names), list(places))


def dataflow_match(candidate: str, reference: str, language: str) -> tuple[int, int]:
    """How many flows of the reference the candidate has, too, each as often, and how many the reference has.

    Variables are renamed by the order in which the flows of each name them, so that names make no difference.

    Args:
        candidate: code without comments.
        reference: likewise.
        language: one of `RULES`.
    """
    wanted, found = (Counter(_renamed(flows(code, language))) for code in (reference, candidate))
    return (wanted & found).total(), wanted.total()


def flows(code: str, language: str) -> list[Flow]:
    """The flows of a program in the order of its places, those left out from and to which nothing leads.

    None where a statement lacks a part that the rules need, or where loops are nested so deeply that the walk has no end.
    """
    root = parse(code, language).root_node
    try:
        found = _Walk(root, RULES[language]).visit(root, {})
    except (_IncompleteError, RecursionError):
        return []
    linked = {place for flow in found if flow.places for place in (flow.place, *flow.places)}
    united: dict[int, Flow] = {}
    for flow in sorted(found, key=lambda flow: flow.place):
        if flow.place in linked:
            united[flow.place] = united[flow.place] + flow if flow.place in united else flow
    return list(united.values())


def _renamed(found: Iterable[Flow]) -> list[tuple[int, str, tuple[int, ...]]]:
    """The flows with numbers instead of names: that of the target, the relation, those of the sources."""
    numbers: dict[str, int] = {}
    out = []
    for flow in found:
        sources = tuple(numbers.setdefault(name, len(numbers)) for name in flow.names)
        out.append((numbers.setdefault(flow.name, len(numbers)), flow.relation, sources))
    return out


class _IncompleteError(Exception):
    """A node lacks a part, or there is no end of nodes."""


class _Walk:
    """One program's nodes in the order of execution. Every visit returns flows and changes the state that it is given."""

    def __init__(self, root: Node, rules: Rules) -> None:
        self._rules = rules
        self._places = {_span(leaf): place for place, leaf in enumerate(_leaves(root))}
        self._visits = 0

    def visit(self, node: Node, state: State) -> list[Flow]:
        """The flows of a node and all below it."""
        self._visits += 1
        if self._visits > _MOST_VISITS:
            raise _IncompleteError
        kind, rules = node.type, self._rules
        if _is_leaf(node):
            return self._read(node, state)
        if kind in rules.declarations:
            return self._declare(node, state)
        if kind in rules.assignments:
            return self._assign(node, state)
        if kind in rules.updates:
            return self._store([node], [node], "computedFrom", state)
        if kind == "if_statement":
            return self._branch(node, state)
        if kind in rules.loops:
            return _merged(self._all(node.children * 2, state))
        if kind == "for_statement":
            return _merged(self._iterate(node, state) if rules is RULES["python"] else self._count(node, state))
        if kind in rules.iterations:
            return _merged(self._each(node, state))
        return self._all(sorted(node.children, key=lambda child: child.type != "for_in_clause"), state)

    def _all(self, nodes: Iterable[Node], state: State) -> list[Flow]:
        return [flow for node in nodes for flow in self.visit(node, state)]

    def _named(self, node: Node) -> list[tuple[int, str]]:
        """Place and text of every name and literal at and below a node."""
        return [(self._places[_span(leaf)], text) for leaf in _leaves(node) if (text := _text(leaf)) != leaf.type]

    def _read(self, node: Node, state: State) -> list[Flow]:
        """A name that has a value, one that gets its first here, a literal; keywords and punctuation are named as they are."""
        flows = []
        for place, text in self._named(node):
            known = state.get(text)
            if known is None and node.type == "identifier":
                state[text] = (place,)
            flows.append(Flow(place, text, "comesFrom", [text], list(known)) if known else Flow(place, text, "comesFrom"))
        return flows

    def _store(self, left: Sequence[Node], right: Sequence[Node], relation: str, state: State) -> list[Flow]:
        """What is on the left from what is on the right, side by side."""
        flows = []
        for target, value in zip(left, right, strict=True):
            sources = self._named(value)
            for place, name in self._named(target):
                if relation == "computedFrom" and self._rules.as_one:
                    flows.append(Flow(place, name, relation, [text for _, text in sources], [source for source, _ in sources]))
                else:
                    flows += [Flow(place, name, relation, [text], [source]) for source, text in sources]
                state[name] = (place,)
        return flows

    def _declare(self, node: Node, state: State) -> list[Flow]:
        name, value = _part(node, "name"), node.child_by_field_name("value")
        if value is not None:
            return self.visit(value, state) + self._store([name], [value], "comesFrom", state)
        named = self._named(name)
        state.update((text, (place,)) for place, text in named)
        return [Flow(place, text, "comesFrom") for place, text in named]

    def _assign(self, node: Node, state: State) -> list[Flow]:
        if node.type == "for_in_clause":
            left, right = [_part(node, "left")], [node.children[-1]]
        elif self._rules is not RULES["python"]:
            left, right = [_part(node, "left")], [_part(node, "right")]
        elif node.child_by_field_name("right") is None:
            return []  # a name with its type
        else:
            left, right = _side_by_side(node)
        return self._all(right, state) + self._store(left, right, "computedFrom", state)

    def _branch(self, node: Node, state: State) -> list[Flow]:
        """The ways through an if statement, each from the state before it; afterwards any of them was taken."""
        before, after = dict(state), dict(state)
        ends: list[State] = []
        flows: list[Flow] = []
        has_else = False
        for child in node.children:
            has_else |= "else" in child.type
            if child.type in self._rules.alternatives or (self._rules.onward and ends):
                ends.append(dict(before))
                flows += self.visit(child, ends[-1])
            else:
                flows += self.visit(child, after)
        ends.append(after)
        if not has_else or self._rules.falls_through:
            ends.append(before)
        state.clear()
        for end in ends:
            for name, places in end.items():
                state[name] = tuple(sorted({*state.get(name, ()), *places}))
        return flows

    def _iterate(self, node: Node, state: State) -> list[Flow]:
        """Python's for statement. A loop with an else is not followed into, as in the published code."""
        left, right = _side_by_side(node)
        flows = []
        for _ in range(2):
            flows += self._all(right, state) + self._store(left, right, "computedFrom", state)
            if node.children[-1].type == "block":
                flows += self.visit(node.children[-1], state)
        return flows

    def _count(self, node: Node, state: State) -> list[Flow]:
        """A for statement of the other languages: all, then what is behind the declaration of its counter again."""
        flows = self._all(node.children, state)
        head = next((i for i, child in enumerate(node.children) if child.type in self._rules.heads), None)
        if head is None:
            return flows
        update = node.children[head].child_by_field_name("update")
        return flows + self._all([*([update] if update else []), *node.children[head + 1 :]], state)

    def _each(self, node: Node, state: State) -> list[Flow]:
        name, value, body = (_part(node, part) for part in ("name", "value", "body"))
        flows = []
        for _ in range(2):
            flows += self.visit(value, state) + self._store([name], [value], "computedFrom", state) + self.visit(body, state)
        return flows


def _merged(found: Sequence[Flow]) -> list[Flow]:
    """Flows of the same place, name and relation, which the second walk found again, as one."""
    merged: dict[tuple[int, str, str], Flow] = {}
    for flow in sorted(found, key=lambda flow: flow.place):
        key = (flow.place, flow.name, flow.relation)
        merged[key] = merged[key] + flow if key in merged else flow
    return list(merged.values())


def _side_by_side(node: Node) -> tuple[list[Node], list[Node]]:
    """The parts of both sides where there are equally many, as in `a, b = b, a`, else each side as one."""
    sides = _part(node, "left"), _part(node, "right")
    left, right = ([child for child in side.children if child.type != ","] for side in sides)
    return (left, right) if left and len(left) == len(right) else ([sides[0]], [sides[1]])


def _part(node: Node, name: str) -> Node:
    part = node.child_by_field_name(name)
    if part is None:
        raise _IncompleteError
    return part


def _is_leaf(node: Node) -> bool:
    return (not node.child_count or node.type in _WHOLE) and node.type != "comment"


def _leaves(node: Node) -> list[Node]:
    """The places and the punctuation at and below a node, in the order of the text."""
    leaves, stack = [], [node]
    while stack:
        one = stack.pop()
        if _is_leaf(one):
            leaves.append(one)
        else:
            stack.extend(reversed(one.children))
    return leaves


def _span(node: Node) -> tuple[int, int]:
    return node.start_byte, node.end_byte


def _text(node: Node) -> str:
    return (node.text or b"").decode("utf-8", "replace")
