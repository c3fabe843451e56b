"""A copy of the working directory for a run, so that the real files stay unchanged."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from flowkit.testing.end import Row, entry

COPIED_FILES, COPIED_BYTES = 5_000, 1024 * 1024
"""Most files that are copied, and the most bytes of each. Other files are links to the real ones."""
LINKED = frozenset({"__pycache__", "node_modules"})

Seen = dict[str, tuple[int, ...]]
"""Name -> numbers that change when the file changes."""


class Scratch:
    """A copy of the working directory at `path`. Large files, and folders of tools, are links, to be read only."""

    def __init__(self, path: Path, shared: Path | None) -> None:
        """`shared`: a folder to which runs write directly. If it is below the working directory, it is linked."""
        self.path = path
        self._source = Path.cwd()
        self._shared = None if shared is None else shared.resolve()
        self._left = COPIED_FILES
        self._seen: Seen | None = None

    def restore(self) -> None:
        """Restore the copy to its first state. Blocks."""
        if self._seen is not None and self._seen == self._look():
            return
        shutil.rmtree(self.path, ignore_errors=True)
        self._left = COPIED_FILES
        self._copy(self._source, self.path)
        if self._shared is not None and self._shared.is_relative_to(self._source):
            link = self.path / self._shared.relative_to(self._source)
            if not link.is_symlink():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(self._shared)
        self._seen = self._look()

    def written(self) -> list[Row]:
        """Rows of the files that changed or are new since `restore`, and of the names that are gone. Blocks."""
        before, now = self._seen or {}, self._look()
        changed = sorted(name for name in now if now[name] != before.get(name))
        gone = sorted(before.keys() - now.keys())
        return [
            *(entry(self.path / name, f"./{name}") for name in changed),
            *({"path": f"./{name} (gone)"} for name in gone),
        ]

    def _copy(self, source: Path, to: Path) -> None:
        to.mkdir()
        for one in os.scandir(source):
            copy = to / one.name
            if one.is_dir(follow_symlinks=False) and not self._is_linked(Path(one.path)):
                self._copy(Path(one.path), copy)
            elif one.is_file(follow_symlinks=False) and one.stat().st_size <= COPIED_BYTES and self._left:
                self._left -= 1
                try:
                    shutil.copy2(one.path, copy)
                except OSError:  # the file is not readable
                    copy.symlink_to(one.path)
            else:
                copy.symlink_to(one.path)

    def _is_linked(self, folder: Path) -> bool:
        """Whether a folder is linked as a whole."""
        made_by_tools = folder.name.startswith(".") or folder.name in LINKED or (folder / "pyvenv.cfg").exists()
        return made_by_tools or not self._left or folder == self._shared or not os.access(folder, os.R_OK | os.X_OK)

    def _look(self) -> Seen:
        found: Seen = {}
        for folder, folders, names in os.walk(self.path):
            for name in (*folders, *names):
                path = os.path.join(folder, name)
                with suppress(FileNotFoundError):
                    status = os.lstat(path)
                    is_folder = name in folders
                    found[os.path.relpath(path, self.path)] = (
                        (status.st_mode,)
                        if is_folder
                        else (status.st_mode, status.st_ino, status.st_size, status.st_mtime_ns)
                    )
        return found
