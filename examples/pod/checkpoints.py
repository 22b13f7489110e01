"""Orbax checkpoints, to resume a run that was killed."""

from pathlib import Path
from typing import Any, Self

import optax
import orbax.checkpoint as ocp

import tpgm_jax
from examples.pod.settings import Refused
from examples.pod.training import State


class Checkpoints:
    """A folder of checkpoints. Each holds parameters, optimizer state and settings.

    All processes must call each method. On a pod every host must have access to the folder, for
    example a bucket. Orbax writes in the background, into a folder with another name that it
    renames at the end, so an unfinished checkpoint is not mistaken for a complete one.
    """

    def __init__(self, folder: str, settings: dict[str, Any], every: int | None = None):
        """
        Args:
            folder: created if missing, unless `every` is `None`.
            settings: the settings that determine the run.
            every: steps between checkpoints. `None`: only read.
        """
        self.folder, self.settings = folder, settings
        whole = folder if "://" in folder else str(Path(folder).absolute())
        options = ocp.CheckpointManagerOptions(
            save_interval_steps=every or 1, max_to_keep=3, create=every is not None
        )
        self.manager = ocp.CheckpointManager(whole, options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.manager.close()  # waits until writing has finished

    def latest(self) -> int | None:
        """The step of the latest checkpoint, or `None` if there is none.

        Raises:
            Refused: the checkpoint was made with other settings.
        """
        step = self.manager.latest_step()
        if step is None:
            return None
        saved = self._restore(step, settings=ocp.args.JsonRestore()).settings
        other = {k: saved[k] for k, v in self.settings.items() if saved.get(k, v) != v}
        if other:
            raise Refused(
                f"the checkpoints in {self.folder} were made with {other}: pass the same, or "
                "name another folder."
            )
        return step

    def save(self, step: int, state: State, last: bool) -> None:
        """Saves every `every` steps, and at the last step."""
        # Returns when the arrays are copied to the host, so the next step may reuse their memory.
        items = {name: ocp.args.StandardSave(tree) for name, tree in state._asdict().items()}
        settings = ocp.args.JsonSave(self.settings)
        self.manager.save(step, args=ocp.args.Composite(settings=settings, **items), force=last)

    def restore(self, step: int, abstract: State) -> State:
        """The saved state, with the shardings of `abstract`.

        Raises:
            ValueError: it was saved with another norm, other axes or other options.
        """
        items = {name: ocp.args.StandardRestore(x) for name, x in abstract._asdict().items()}
        restored = self._restore(step, **items)
        state = State(restored.params, restored.opt_state)
        if optax.tree.get_all_with_path(state.opt_state, "fingerprint"):  # not for AdamW alone
            tpgm_jax.check_state(state.opt_state, state.params)
        return state

    def restore_params(self, abstract: Any) -> Any:
        """The latest parameters, without the optimizer state.

        Raises:
            Refused: there is no checkpoint, or it is of another model.
        """
        step = self.latest()
        if step is None:
            raise Refused(f"there is no checkpoint in {self.folder}.")
        return self._restore(step, params=ocp.args.StandardRestore(abstract)).params

    def _restore(self, step: int, **items: Any) -> Any:
        return self.manager.restore(step, args=ocp.args.Composite(**items))
