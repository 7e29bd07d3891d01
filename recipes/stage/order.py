"""The stages of a run in the order of the loop, whatever the clock said when they were made."""

from __future__ import annotations

from pathlib import Path

from recipes.stage.folder import MANIFEST, read_own


def stages_in(run: Path) -> list[Path]:
    """The folders of all finished stages of a run: what a stage reads before the stage, else by name."""
    found = sorted(path.parent for path in run.rglob(MANIFEST))
    places = {folder.resolve(): folder for folder in found}
    depths: dict[Path, int] = {}

    def depth(folder: Path) -> int:
        if folder not in depths:
            depths[folder] = 0  # a loop of damaged manifests ends here
            read = read_own(folder / MANIFEST) or {}
            before = [(folder / at[0]).resolve() for at in read.get("sources", {}).values()]
            inside = [places[parent] for path in before for parent in (path, *path.parents) if parent in places]
            depths[folder] = max((1 + depth(other) for other in inside if other != folder), default=0)
        return depths[folder]

    return sorted(found, key=lambda folder: (depth(folder), str(folder)))
