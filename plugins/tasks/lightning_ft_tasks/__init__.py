"""Tasks and their metrics as a plugin of lightning-ft. Hooks only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_ft import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lightning_ft.metric import Metric
    from lightning_ft.task import Task


@hookimpl
def register_tasks() -> Iterable[type[Task]]:
    """Instructions, conversations, trees, reasoning, code, fields, pairs, classes, safety, and templates."""
    from lightning_ft_tasks.chat import Chat
    from lightning_ft_tasks.classify import Classify
    from lightning_ft_tasks.code import Code
    from lightning_ft_tasks.constrained import Constrained
    from lightning_ft_tasks.custom import Custom
    from lightning_ft_tasks.domain import Domain
    from lightning_ft_tasks.instruct import Instruct
    from lightning_ft_tasks.preference import PreferencePairs, UnpairedAnswers
    from lightning_ft_tasks.reasoning import Reasoning
    from lightning_ft_tasks.safety import Safety
    from lightning_ft_tasks.self_instruct import SelfInstruct
    from lightning_ft_tasks.templated import Templated
    from lightning_ft_tasks.tree import Tree

    of_turns: list[type[Task]] = [Instruct, SelfInstruct, Constrained, Reasoning, Safety, Custom, Chat, Tree, Templated]
    return [*of_turns, Code, Domain, PreferencePairs, UnpairedAnswers, Classify]


@hookimpl
def register_metrics() -> Iterable[type[Metric]]:
    """Overlap with references, translation, classes, length and variety of answers, what each task looks at, code, pairs."""
    from lightning_ft_tasks import (
        adherence,
        classes,
        classifier,
        coverage,
        dialogue,
        diversity,
        final_answers,
        meteor,
        metrics,
        pair_metrics,
        safety_metrics,
        translation,
    )
    from lightning_ft_tasks.code_metrics import codebleu, passing, surface

    return [
        metrics.ExactMatch, metrics.TokenF1, metrics.WordOverlap, metrics.AnswerLength,
        metrics.Rouge1, metrics.Rouge2, metrics.RougeL, metrics.RougeLsum, meteor.Meteor,
        translation.Bleu, translation.BleuZh, translation.BleuChar, translation.Chrf, translation.ChrfPlusPlus, translation.Ter,
        diversity.Distinct1, diversity.Distinct2, diversity.SelfBleu,
        classes.Accuracy, classes.MacroPrecision, classes.MacroRecall, classes.MacroF1, classes.Mcc,
        classes.ChoiceAccuracy, classes.ChoiceMacroPrecision, classes.ChoiceMacroRecall, classes.ChoiceMacroF1,
        classes.ChoiceMcc, classes.CalibrationError,
        adherence.Adherence, adherence.Completion, final_answers.AnswerMatch, final_answers.FinalAnswer,
        dialogue.Coherence, dialogue.CoherenceMargin, dialogue.Flow,
        safety_metrics.RefusalRate, safety_metrics.OverRefusal, safety_metrics.LeakedSecrets, safety_metrics.ToxicityWords,
        classifier.ClassifiedUnsafe,
        surface.SyntaxValid, surface.CodeExactMatch, surface.EditSimilarity,
        codebleu.Codebleu, codebleu.CodebleuSyntax, codebleu.CodebleuDataflow,
        passing.PassAt1, passing.PassAt5, passing.PassAt10, passing.PassAt100,
        coverage.VocabularyCoverage,
        pair_metrics.PreferenceAccuracy, pair_metrics.PreferenceAccuracyAvg, pair_metrics.PreferenceMargin,
    ]  # fmt: skip
