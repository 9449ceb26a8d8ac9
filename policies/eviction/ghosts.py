"""Keys of content that was lost not long ago: what adaptive eviction policies remember."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable


class Ghosts:
    """A list of keys, oldest first out, and those of them that an admitted prompt has asked for.

    In the papers a key is looked up before room is made for it. A cache that makes room for a whole prompt first would push
    that prompt's own keys out of the list: `call` sets them aside until they are back. `forgotten`: hears of each key that
    is dropped.

    >>> ghosts = Ghosts()
    >>> for key in (1, 2, 3):
    ...     ghosts.add(key)
    >>> ghosts.call([1, 9])
    >>> ghosts.trim(1)
    >>> [key for key in (1, 2, 3) if key in ghosts]
    [1, 3]
    >>> ghosts.pop(1), ghosts.pop(1), len(ghosts)
    (True, False, 1)
    """

    __slots__ = ("_called", "_forgotten", "_keys")

    def __init__(self, forgotten: Callable[[int], object] | None = None) -> None:
        self._keys: OrderedDict[int, None] = OrderedDict()
        self._called: OrderedDict[int, None] = OrderedDict()
        self._forgotten = forgotten

    def __len__(self) -> int:
        return len(self._keys) + len(self._called)

    def __contains__(self, key: int | None) -> bool:
        return key in self._keys or key in self._called

    @property
    def kept(self) -> int:
        """Keys that `trim` counts: those not set aside."""
        return len(self._keys)

    def add(self, key: int) -> None:
        """Content of this key is lost."""
        self._called.pop(key, None)
        self._keys[key] = None

    def pop(self, key: int | None) -> bool:
        """Take a key out; False if it is not known."""
        for keys in (self._keys, self._called):
            if key is not None and key in keys:
                del keys[key]
                return True
        return False

    def call(self, keys: Iterable[int]) -> None:
        """A prompt with these keys is about to be computed; what earlier ones never came back for goes, beyond as many."""
        asked = [key for key in keys if key in self._keys]
        for key in asked:
            del self._keys[key]
            self._called[key] = None
        self._drop(self._called, max(len(asked), len(self._keys)))

    def trim(self, most: float) -> None:
        """Forget the oldest beyond that many."""
        self._drop(self._keys, most)

    def _drop(self, keys: OrderedDict[int, None], most: float) -> None:
        while len(keys) > most:
            key, _ = keys.popitem(last=False)
            if self._forgotten is not None:
                self._forgotten(key)
