"""Guessed pairs proved layer by layer, in the order of execution, by what goes into each layer.

Once all layers that run before one of the target's are right, what goes into it is what goes into its source. So the
target runs, and the first of its layers that is only guessed takes a source layer that has had the same inputs. Where
several have, as queries and keys, each is tried: a wrong one shows in the inputs of what follows, or in the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..core.outputs import arrays_of
from ..core.slots import Activation
from .divergence import layers_distance
from .match import GUESS
from .plan import Plan

MOST_PASSES = 200  # passes of the target

Pairs = Mapping[str, str]  # target layer -> source layer


@dataclass
class LayerSearch:
    """Looks for the pairs under which both models compute the same.

    Attributes:
        plan_of: Gives a plan with these pairs, the rest in order.
        run: Carries a plan out, and gives the target's calls.
        agrees: Whether both models' outputs agree, with the plan that was run last.
        source_calls: The source's calls.
        bound: How far inputs may be, in eps.
        passes: How often the target has run.
    """

    plan_of: Callable[[Pairs], Plan]
    run: Callable[[Plan], Sequence[Activation]]
    agrees: Callable[[Plan], bool]
    source_calls: Sequence[Activation]
    bound: float
    passes: int = field(default=0, init=False)

    def find(self, known: Pairs) -> Plan | None:
        """The plan that is proved; None where there is none, or the passes are used up.

        Args:
            known: Pairs that are taken as they are.
        """
        if self.passes == MOST_PASSES:
            return None
        self.passes += 1
        plan, known = self.plan_of(known), dict(known)
        guessed = {match.target: match for match in plan.matches if match.evidence == GUESS and not match.parts}
        sources = {call.layer: call for call in reversed(self.source_calls)}
        renamed = {match.source: match.renamed for match in guessed.values()}
        for call in self.run(plan):
            match = guessed.get(call.layer)
            if match is None or call.layer in known:
                continue
            shapes = sorted((leaf, entry.spec.shape) for leaf, entry in match.entries.items())
            alike = [
                each.source
                for each in guessed.values()
                if each.renamed not in known.values()
                and sorted((leaf, entry.spec.shape) for leaf, entry in each.entries.items()) == shapes
            ]
            fitting = [layer for layer in alike if layer in sources and self._same_inputs(sources[layer], call)]
            if fitting == [match.source]:
                known[call.layer] = match.renamed
                continue
            fitting.sort(key=lambda layer: layer != match.source)  # as it is now, first
            plans = (self.find({**known, call.layer: renamed[layer]}) for layer in fitting)
            return next((each for each in plans if each is not None), None)
        return plan if self.agrees(plan) else None

    def _same_inputs(self, source: Activation, target: Activation) -> bool:
        inputs, others = arrays_of(source.inputs), arrays_of(target.inputs)
        shapes = [sorted(a.shape) for a in inputs], [sorted(a.shape) for a in others]
        return shapes[0] == shapes[1] and layers_distance(inputs, others) <= self.bound
