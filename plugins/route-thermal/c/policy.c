/* A small router by heat and difficulty. The same in four languages: see the README one
 * folder up. */
#include <math.h>

#include "homeostat.h"

/* Distances to the first slowdown, in °C, from which a device counts as hot or warm. */
#define HOT_CELSIUS 5.0
#define WARM_CELSIUS 15.0
/* Draft tokens where speculation is allowed. */
#define DRAFT_TOKENS 4
/* When to try again, if nothing is ready. */
#define RETRY_MS 1000

enum heat { COOL, WARM, HOT };

static enum heat heat(const hs_snapshot *snapshot) {
    double margin = INFINITY;
    for (size_t i = 0; i < snapshot->devices.len; i++) {
        const hs_device *device = &snapshot->devices.ptr[i];
        if (device->thermal_margin_celsius.is_some)
            margin = fmin(margin, device->thermal_margin_celsius.val.value);
    }
    switch (snapshot->metabolism.state) {
    case HOMEOSTAT_POLICY_TYPES_METABOLIC_STATE_CONSTRAINED:
    case HOMEOSTAT_POLICY_TYPES_METABOLIC_STATE_CRITICAL:
        return HOT;
    case HOMEOSTAT_POLICY_TYPES_METABOLIC_STATE_ELEVATED:
        return margin <= HOT_CELSIUS ? HOT : WARM;
    default:
        return margin <= HOT_CELSIUS ? HOT : margin <= WARM_CELSIUS ? WARM : COOL;
    }
}

/* The ready tier with this number, counted from the smallest. */
static const hs_tier *ready_tier(const hs_tier *tiers, size_t number) {
    while (!tiers->ready || number-- > 0) tiers++;
    return tiers;
}

static bool route(const hs_request *request, const hs_classification *classification,
                  const hs_tier *tiers, size_t len, const hs_snapshot *snapshot,
                  hs_decision *decision, hs_error *error) {
    (void)request, (void)error;
    size_t ready = 0;
    for (size_t i = 0; i < len; i++) ready += tiers[i].ready;
    if (!ready) {
        hs_reject(decision, HOMEOSTAT_POLICY_TYPES_REFUSAL_OVERLOADED, "no tier is ready");
        decision->val.reject.retry_after_ms.is_some = true;
        decision->val.reject.retry_after_ms.val = RETRY_MS;
        return true;
    }
    size_t wanted = ready / 2;
    const char *reason = "cool: from the middle";
    if (classification->p_simple >= 0.5f) {
        wanted = 0;
        reason = "cool: from the smallest";
    } else if (classification->p_complex >= 0.5f) {
        wanted = ready - 1;
        reason = "cool: from the largest";
    }
    enum heat now = heat(snapshot);
    size_t first = wanted, end = ready;
    if (now == HOT) {
        first = 0, end = 1;
        reason = "hot: only the smallest";
    } else if (now == WARM) {
        first = wanted ? wanted - 1 : 0, end = first + 1;
        reason = "warm: one size smaller";
    }
    bool guess = now != HOT && snapshot->metabolism.speculation !=
                                   HOMEOSTAT_POLICY_TYPES_SPECULATION_HINT_AVOID;
    hs_plan(decision, reason);
    for (size_t i = first; i < end; i++) {
        const hs_tier *tier = ready_tier(tiers, i);
        hs_try(decision, tier)->max_draft_tokens = guess && tier->can_speculate ? DRAFT_TOKENS : 0;
    }
    return true;
}

HS_ROUTER(route)
