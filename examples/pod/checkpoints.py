"""Orbax checkpoints, which a run that was killed goes on from."""

from pathlib import Path
from typing import Any

import optax
import orbax.checkpoint as ocp

import tpgm_jax
from examples.pod.settings import Refused
from examples.pod.training import State


class Checkpoints:
    """A folder of checkpoints, each of them whole: parameters, optimizer state, settings.

    All processes call all methods. On a pod the folder must be one that every host sees, such
    as a bucket. Orbax writes in the background, into a folder of another name that it renames at
    the end: what a kill leaves unfinished is not taken for a checkpoint.
    """

    def __init__(self, folder: str, settings: dict[str, Any], every: int | None = None):
        """
        Args:
            folder: is made if missing, unless it is only to be read.
            settings: what determines the run.
            every: steps between checkpoints; `None`: only read.
        """
        self.folder, self.settings = folder, settings
        whole = folder if "://" in folder else str(Path(folder).absolute())
        options = ocp.CheckpointManagerOptions(
            save_interval_steps=every or 1, max_to_keep=3, create=every is not None
        )
        self.manager = ocp.CheckpointManager(whole, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.manager.close()  # waits for what is being written

    def latest(self) -> int | None:
        """How many steps are behind the latest checkpoint; `None`: there is no checkpoint.

        Raises:
            Refused: it was made with other settings.
        """
        step = self.manager.latest_step()
        if step is None:
            return None
        saved = self._restore(step, settings=ocp.args.JsonRestore()).settings
        other = {k: saved[k] for k, v in self.settings.items() if saved.get(k, v) != v}
        if other:
            raise Refused(
                f"the checkpoints in {self.folder} were made with {other}: ask for the same, or "
                "name another folder."
            )
        return step

    def save(self, step: int, state: State, last: bool) -> None:
        """Saves if it is time to, or this is the last step."""
        # Returns when the arrays are copied to the host, so that the next step may reuse them.
        items = {name: ocp.args.StandardSave(tree) for name, tree in state._asdict().items()}
        settings = ocp.args.JsonSave(self.settings)
        self.manager.save(step, args=ocp.args.Composite(settings=settings, **items), force=last)

    def restore(self, step: int, abstract: State) -> State:
        """What was saved, laid out over the devices as `abstract` says.

        Raises:
            ValueError: it was saved with another norm, other axes or the like.
        """
        items = {name: ocp.args.StandardRestore(x) for name, x in abstract._asdict().items()}
        restored = self._restore(step, **items)
        state = State(restored.params, restored.opt_state)
        if optax.tree.get_all_with_path(state.opt_state, "fingerprint"):  # not for AdamW alone
            tpgm_jax.check_state(state.opt_state, state.params)
        return state

    def restore_params(self, abstract: Any) -> Any:
        """The latest parameters, without the rest.

        Raises:
            Refused: there is no checkpoint, or it is of another model.
        """
        step = self.latest()
        if step is None:
            raise Refused(f"there is no checkpoint in {self.folder}.")
        return self._restore(step, params=ocp.args.StandardRestore(abstract)).params

    def _restore(self, step: int, **items: Any) -> Any:
        return self.manager.restore(step, args=ocp.args.Composite(**items))
