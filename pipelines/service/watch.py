"""A folder that a scanner drops slides into: each is submitted once it is whole."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from pipelines.runs.cohort import slides_in
from pipelines.service.service import RefusedError, Service
from wsi.errors import ConfigError, WsiError
from wsi.slides.source import SlideSource

log = logging.getLogger(__name__)

LOOK_S = 5.0  # between two looks; a file that did not change between two is taken for whole


class Watcher:
    """Looks into a folder every few seconds, and submits new slides without a deadline."""

    def __init__(self, folder: Path, service: Service, *, look_s: float = LOOK_S) -> None:
        """Keep in mind what to watch.

        Raises:
            ConfigError: there is no such folder.
        """
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder; make it, or check --watch")
        self._folder, self._service, self._look_s = folder, service, look_s
        self._seen: dict[Path, object] = {}  # the state of each file at the last look
        self._told: dict[Path, object] = {}  # files that were submitted, or refused, in this state
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.look()
            except Exception:  # one file must not end the watch
                log.exception("%s", self._folder)
            self._stop.wait(self._look_s)

    def look(self) -> None:
        """Look once."""
        try:
            files = slides_in(self._folder)
        except (WsiError, OSError) as error:  # an unmounted disk may come back
            log.warning("%s cannot be looked into (%s)", self._folder, error)
            return
        for file in files:
            try:
                state = SlideSource(str(file)).state()
            except WsiError:
                continue  # it has gone again
            is_whole = self._seen.get(file) == state
            self._seen[file] = state
            if not is_whole or self._told.get(file) == state:
                continue
            try:
                if self._service.knows(file):  # a cancelled one is not taken again
                    self._told[file] = state
                    continue
                record, _ = self._service.submit(str(file))
                log.info("%s: taken, %d cells", record.name, record.cells)
            except RefusedError as error:
                if error.status == 429:
                    continue  # it is submitted at a later look
                log.warning("%s is not taken: %s", file, error)
            except WsiError as error:
                log.warning("%s", error)
                continue
            self._told[file] = state
