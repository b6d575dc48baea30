"""1,000 swaps of the routing policy under eight streaming clients."""

import figures
import settings
import swap_under_load


def test_a_thousand_swaps_disturb_nobody(start):
    server = start(settings.basic() + settings.no_encoder())
    found = swap_under_load.run(server, swaps=1000, copies=20, clients=8)
    figures.keep("swap_under_load", **found)
    assert found["failures"] == 0, found["first_failures"]
    assert found["swaps"] == 1000 and found["by_file_copy"] >= 20
    assert found["by_put"] + found["by_rollback"] + found["by_file_copy"] == 1000
    assert found["by_put"] >= 400
    assert found["answers_of_a"] and found["answers_of_b"]
    assert found["model_answers_of_a"] and found["model_answers_of_b"]
    # 500 generations come and go between the two; one of them holds some 0.5 MiB of code.
    assert found["rss_mib_late"] < found["rss_mib_early"] + 32, found
