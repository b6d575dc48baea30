/* Battery: on the mains a request gets what it takes. On battery it gets less, the emptier the
 * battery is and the less it will last, and in the reserve only the smallest tier, shortly. */
#include <math.h>

#include "homeostat.h"

/* When to try again, if nothing is ready. */
#define RETRY_MS 1000

enum saving { MAINS, FULL, HALF, RESERVE };

/* How hard it must save. `reserve` and `save` are charges; a battery that will be empty before
 * `minutes` are over must save as well, and before half of them are over it is in the reserve. */
static enum saving saving(const hs_snapshot *snapshot, double reserve, double save,
                          double minutes) {
    const homeostat_policy_types_supply_t *supply = &snapshot->supply.val;
    if (!snapshot->supply.is_some || !supply->on_battery) return MAINS;
    double charge = NAN, left = NAN;
    if (supply->charge_ratio.is_some) charge = supply->charge_ratio.val;
    if (supply->time_left_s.is_some) left = supply->time_left_s.val / 60.0;
    /* Comparisons with what is not known are false: it is neither empty nor full. */
    if (charge <= reserve || left < minutes / 2) return RESERVE;
    if (charge <= save || left < minutes) return HALF;
    return FULL;
}

static bool route(const hs_request *request, const hs_classification *classification,
                  const hs_tier *tiers, size_t len, const hs_snapshot *snapshot,
                  hs_decision *decision, hs_error *error) {
    (void)request;
    double reserve = 0.15, save = 0.5, minutes = 0, tokens = 128;
    if (!hs_number("reserve", 0, 1, &reserve, error) || !hs_number("save", 0, 1, &save, error) ||
        !hs_number("minutes", 0, 1e5, &minutes, error) ||
        !hs_number("reserve-tokens", 1, 1e5, &tokens, error))
        return false;

    const hs_tier **ready = malloc((len + 1) * sizeof *ready);
    if (!ready) abort();
    size_t count = 0;
    for (size_t i = 0; i < len; i++)
        if (tiers[i].ready) ready[count++] = &tiers[i];
    if (!count) {
        hs_reject(decision, HOMEOSTAT_POLICY_TYPES_REFUSAL_OVERLOADED, "no tier is ready");
        decision->val.reject.retry_after_ms.is_some = true;
        decision->val.reject.retry_after_ms.val = RETRY_MS;
        return true;
    }

    size_t wanted = classification->p_simple >= 0.5f    ? 0
                    : classification->p_complex >= 0.5f ? count - 1
                                                        : count / 2;
    size_t first = wanted, end = count;
    const char *reason = "on the mains";
    enum saving now = saving(snapshot, reserve, save, minutes);
    switch (now) {
    case MAINS:
        break;
    case FULL:
        reason = "on battery: nobody is asked twice";
        end = first + 1;
        break;
    case HALF:
        reason = "on battery, saving: one size smaller";
        first = wanted ? wanted - 1 : 0, end = first + 1;
        break;
    case RESERVE:
        reason = "on battery, in the reserve: the smallest, shortly";
        first = 0, end = 1;
        break;
    }
    hs_plan(decision, reason);
    for (size_t i = first; i < end && decision->val.plan.steps.len < 8; i++) {
        hs_step *step = hs_try(decision, ready[i]);
        step->max_tokens.is_some = now == RESERVE;
        step->max_tokens.val = (uint32_t)tokens;
    }
    return true;
}

HS_ROUTER(route)
