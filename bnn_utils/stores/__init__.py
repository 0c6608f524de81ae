"""Where draws go: memory, or a folder on the disk from which a run goes on after whatever has stopped it."""

from bnn_utils.stores.base import Store
from bnn_utils.stores.folder import ZarrDraws, ZarrStore, open_for_reading
from bnn_utils.stores.memory import MemoryStore

__all__ = ["MemoryStore", "Store", "ZarrDraws", "ZarrStore", "open_for_reading"]
