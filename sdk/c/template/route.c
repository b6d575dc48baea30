/* Always the smallest tier that is ready. */
#include "homeostat.h"

static bool route(const hs_request *request, const hs_classification *classification,
                  const hs_tier *tiers, size_t len, const hs_snapshot *snapshot,
                  hs_decision *decision, hs_error *error) {
    (void)request, (void)classification, (void)snapshot;
    for (size_t i = 0; i < len; i++) {
        if (!tiers[i].ready) continue;
        hs_plan(decision, "always the smallest");
        hs_try(decision, &tiers[i]);
        return true;
    }
    return hs_fail(error, "no tier is ready");
}

HS_ROUTER(route)
