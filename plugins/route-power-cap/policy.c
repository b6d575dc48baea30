/* A power cap: the request gets the tier that it probably takes, or the largest smaller one that
 * still fits under the cap.
 *
 * What a tier adds is its energy per token over its time per token; where nobody knows that, it
 * may be asked while anything is left. Tiers on other machines add nothing here. */
#include <math.h>

#include "homeostat.h"

/* When to try again, if nothing is ready or nothing fits. */
#define RETRY_MS 1000

static bool refuse(hs_decision *decision, const char *why) {
    hs_reject(decision, HOMEOSTAT_POLICY_TYPES_REFUSAL_OVERLOADED, why);
    decision->val.reject.retry_after_ms.is_some = true;
    decision->val.reject.retry_after_ms.val = RETRY_MS;
    return true;
}

/* What the machine draws: what a meter outside tells, else the whole machine, else the sum of
 * its chips. False where nothing is measured; what is stale or lost is not measured. */
static bool drawn(const hs_snapshot *snapshot, double *watts) {
    double sum[3] = {0};
    bool known[3] = {false};
    for (size_t i = 0; i < snapshot->devices.len; i++) {
        const hs_device *device = &snapshot->devices.ptr[i];
        if (!device->power_watts.is_some ||
            device->health == HOMEOSTAT_POLICY_TYPES_HEALTH_STALE ||
            device->health == HOMEOSTAT_POLICY_TYPES_HEALTH_LOST)
            continue;
        size_t place = device->kind == HOMEOSTAT_POLICY_TYPES_DEVICE_KIND_EXTERNAL ? 0
                       : device->kind == HOMEOSTAT_POLICY_TYPES_DEVICE_KIND_HOST   ? 1
                                                                                   : 2;
        sum[place] += device->power_watts.val.value;
        known[place] = true;
    }
    for (size_t place = 0; place < 3; place++) {
        if (!known[place]) continue;
        *watts = sum[place];
        return true;
    }
    return false;
}

/* The smaller of the setting and what the host's budgets allow. */
static double least_cap(const hs_snapshot *snapshot, double cap) {
    for (size_t i = 0; i < snapshot->budgets.len; i++) {
        if (snapshot->budgets.ptr[i].unit == HOMEOSTAT_POLICY_TYPES_BUDGET_UNIT_WATTS)
            cap = fmin(cap, snapshot->budgets.ptr[i].limit);
    }
    return cap;
}

/* What a tier adds while it answers, in watts; 0 where nobody knows. */
static double adds(const hs_tier *tier) {
    if (!tier->joules_per_token.is_some || !tier->tpot_ms.is_some) return 0;
    double watts = tier->joules_per_token.val.value / (tier->tpot_ms.val.value / 1000);
    return isfinite(watts) && watts > 0 ? watts : 0;
}

static bool fits(const hs_tier *tier, double used, double cap) {
    if (tier->kind == HOMEOSTAT_POLICY_TYPES_TIER_KIND_REMOTE) return true;
    return used < cap && used + adds(tier) <= cap;
}

static bool route(const hs_request *request, const hs_classification *classification,
                  const hs_tier *tiers, size_t len, const hs_snapshot *snapshot,
                  hs_decision *decision, hs_error *error) {
    (void)request;
    double cap = INFINITY, used = 0;
    if (!hs_number("watts", 1, 1e6, &cap, error)) return false;
    const char *full = hs_config("when-full");
    bool refuses = full && strcmp(full, "refuse") == 0;
    if (full && !refuses && strcmp(full, "smallest") != 0)
        return hs_wrong(error, "when-full", full, "smallest or refuse");
    cap = least_cap(snapshot, cap);
    bool measured = drawn(snapshot, &used);
    bool capped = measured && isfinite(cap);

    const hs_tier **ready = malloc((len + 1) * sizeof *ready);
    if (!ready) abort();
    size_t count = 0;
    for (size_t i = 0; i < len; i++)
        if (tiers[i].ready) ready[count++] = &tiers[i];
    if (!count) return refuse(decision, "no tier is ready");

    size_t wanted = classification->p_simple >= 0.5f    ? 0
                    : classification->p_complex >= 0.5f ? count - 1
                                                        : count / 2;
    size_t first = wanted;
    while (capped && first > 0 && !fits(ready[first], used, cap)) first--;
    bool over = capped && !fits(ready[first], used, cap);
    if (over && refuses) return refuse(decision, "the power cap is reached");

    char reason[96];
    if (capped) {
        const char *what = over ? "over the cap" : first < wanted ? "fits less" : "fits";
        snprintf(reason, sizeof reason, "%.0f of %.0f W: %s", used, cap, what);
    } else {
        snprintf(reason, sizeof reason, measured ? "no cap is set" : "power is not measured");
    }
    hs_plan(decision, reason);
    hs_try(decision, ready[first]);
    /* Larger ones after it, should its answer not do: one at a time, so each must fit alone. */
    for (size_t i = first + 1; i < count && decision->val.plan.steps.len < 8 && !over; i++)
        if (!capped || fits(ready[i], used, cap)) hs_try(decision, ready[i]);
    return true;
}

HS_ROUTER(route)
