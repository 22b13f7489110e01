"""Checkpoints of a run, to resume it after a kill: parameters, statistics, optimizer, loaders."""

from collections.abc import Mapping
from typing import Any

import optax
import orbax.checkpoint as ocp

import tpgm_jax
from examples.papers.training import State
from examples.pod import checkpoints


class Checkpoints(checkpoints.Checkpoints):
    """The class of `examples.pod`, with batch statistics and the positions of the loaders."""

    def save_run(self, step: int, state: State, loaders: Mapping[str, Any], last: bool) -> None:
        """Saves every `every` steps, and at the last step.

        Args:
            step: number of steps done.
            state: after these steps.
            loaders: by name, the `state()` of a loader after these steps.
            last: save in any case.
        """
        if not (last or self.manager.should_save(step)):
            return
        # Returns when the arrays are copied to the host, so the next step may reuse their memory.
        items = {name: ocp.args.StandardSave(x) for name, x in _trees(state).items()}
        settings = ocp.args.JsonSave(self.settings)
        positions = ocp.args.JsonSave(dict(loaders))
        args = ocp.args.Composite(settings=settings, loaders=positions, **items)
        self.manager.save(step, args=args, force=last)

    def restore_run(self, step: int, abstract: State) -> tuple[State, dict[str, Any]]:
        """The saved state with the shardings of `abstract`, and the positions of the loaders.

        Raises:
            ValueError: it was saved with other options of the method.
        """
        trees = _trees(abstract)
        items = {name: ocp.args.StandardRestore(x) for name, x in trees.items()}
        restored = self._restore(step, loaders=ocp.args.JsonRestore(), **items)
        found = {name: restored[name] for name in items}
        state = State(found["params"], found.get("stats", abstract.stats), found["opt_state"])
        if optax.tree.get_all_with_path(state.opt_state, "fingerprint"):
            tpgm_jax.check_state(state.opt_state, state.params)
        return state, restored.loaders


def _trees(state: State) -> dict[str, Any]:
    """The parts that have arrays. Orbax refuses empty ones, such as a ViT's statistics."""
    return {name: tree for name, tree in state._asdict().items() if tree}
