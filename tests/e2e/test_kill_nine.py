"""A host that is killed loses nothing that it has acknowledged.

HOMEOSTAT_KILLS sets how often it is killed; 200 take some three minutes on two cores, so
the usual run does fewer.
"""

import os
import random

import figures
import kill_nine
from homeostat_process import Homeostat

KILLS = int(os.environ.get("HOMEOSTAT_KILLS", "40"))


def test_a_killed_host_starts_with_the_last_good_policies_and_all_acknowledged_state(built, tmp_path):
    server = Homeostat(tmp_path / "server", kill_nine.configuration())
    seed = random.randrange(1 << 32)
    try:
        found = kill_nine.run(server, KILLS, seed)
    finally:
        server.stop()
    figures.keep("kill_nine", **found)
    assert found["swaps_acknowledged"] and found["numbers_acknowledged"]
