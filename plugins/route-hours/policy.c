/* Business hours: inside them a request gets what it takes, outside them at most a tier of a
 * certain size. For machines that people use by day, and for electricity that is dear by day:
 * `inside` and `outside` say the largest rank, and either may be the smaller one.
 *
 * A policy has no clock; the host writes the time into every snapshot. */
#include "homeostat.h"

#define MINUTES_A_DAY (24 * 60)
#define MINUTES_A_WEEK (7 * MINUTES_A_DAY)
/* When to try again, if nothing is ready. */
#define RETRY_MS 1000

static const char *const DAYS[] = {"mon", "tue", "wed", "thu", "fri", "sat", "sun"};

/* Reads a day's name at `*text` and moves on; -1 when none is there. */
static int day_at(const char **text) {
    for (int day = 0; day < 7; day++) {
        if (strncmp(*text, DAYS[day], 3) != 0) continue;
        *text += 3;
        return day;
    }
    return -1;
}

/* Reads "hh:mm" as minutes of a day, up to 24:00; -1 when none is there. */
static int time_at(const char **text) {
    const char *t = *text;
    for (int i = 0; i < 5; i++)
        if (i == 2 ? t[i] != ':' : !isdigit((unsigned char)t[i])) return -1;
    int hour = (t[0] - '0') * 10 + t[1] - '0', minute = (t[3] - '0') * 10 + t[4] - '0';
    *text += 5;
    int minutes = hour * 60 + minute;
    return minute < 60 && minutes <= MINUTES_A_DAY ? minutes : -1;
}

/* Whether `now`, in minutes since Monday began, lies in hours such as "mon-fri 08:00-18:00" or
 * "sat,sun 22:00-06:00"; several are separated by ";". From is inside, to is not; hours that end
 * before they begin end on the next day. -1 when they cannot be read. */
static int inside(const char *hours, int now) {
    bool found = false;
    for (const char *at = hours;;) {
        while (*at == ' ') at++;
        bool days[7] = {false};
        do {
            if (*at == ',') at++;
            int from = day_at(&at), to = from;
            if (from < 0) return -1;
            if (*at == '-' && (at++, to = day_at(&at)) < 0) return -1;
            for (int day = from;; day = (day + 1) % 7) {
                days[day] = true;
                if (day == to) break;
            }
        } while (*at == ',');
        if (*at++ != ' ') return -1;
        int from = time_at(&at);
        if (from < 0 || *at++ != '-') return -1;
        int to = time_at(&at);
        if (to < 0 || from == to) return -1;
        int length = (to - from + MINUTES_A_DAY) % MINUTES_A_DAY;
        if (!length) length = MINUTES_A_DAY; /* 00:00-24:00 */
        for (int day = 0; day < 7; day++) {
            int since = (now - day * MINUTES_A_DAY - from + 2 * MINUTES_A_WEEK) % MINUTES_A_WEEK;
            found |= days[day] && since < length;
        }
        while (*at == ' ') at++;
        if (!*at) return found;
        if (*at++ != ';') return -1;
    }
}

/* Seconds since 1970 as the host told them; false when it did not. */
static bool clock_of(const hs_snapshot *snapshot, int64_t *seconds) {
    for (size_t i = 0; i < snapshot->attributes.len; i++) {
        const homeostat_policy_types_attribute_t *attribute = &snapshot->attributes.ptr[i];
        if (!hs_is(attribute->f0, "homeostat.unix-seconds") ||
            attribute->f1.tag != HOMEOSTAT_POLICY_TYPES_VALUE_INTEGER)
            continue;
        *seconds = attribute->f1.val.integer;
        return true;
    }
    return false;
}

/* Minutes since Monday began. 1970 began on a Thursday. */
static int minute_of_week(int64_t seconds, double offset_minutes) {
    int64_t minutes = seconds / 60 + (int64_t)offset_minutes + 3 * MINUTES_A_DAY;
    return (int)((minutes % MINUTES_A_WEEK + MINUTES_A_WEEK) % MINUTES_A_WEEK);
}

static bool route(const hs_request *request, const hs_classification *classification,
                  const hs_tier *tiers, size_t len, const hs_snapshot *snapshot,
                  hs_decision *decision, hs_error *error) {
    (void)request;
    const char *hours = hs_config("hours");
    double offset = 0, rank_inside = 1e9, rank_outside = 0;
    if (!hours) hours = "mon-fri 08:00-18:00";
    if (inside(hours, 0) < 0)
        return hs_wrong(error, "hours", hours, "days and times such as mon-fri 08:00-18:00");
    if (!hs_number("utc-offset-minutes", -720, 840, &offset, error) ||
        !hs_number("inside", 0, 1e9, &rank_inside, error) ||
        !hs_number("outside", 0, 1e9, &rank_outside, error))
        return false;

    int64_t seconds;
    const char *reason = "the time is not known";
    double rank = rank_inside;
    if (clock_of(snapshot, &seconds)) {
        bool open = inside(hours, minute_of_week(seconds, offset)) == 1;
        reason = open ? "inside the hours" : "outside the hours";
        rank = open ? rank_inside : rank_outside;
    }

    /* Ready and not too large; if none is, the smallest that is ready. */
    const hs_tier **allowed = malloc((len + 1) * sizeof *allowed), *smallest = NULL;
    if (!allowed) abort();
    size_t count = 0;
    for (size_t i = 0; i < len; i++) {
        if (!tiers[i].ready) continue;
        if (!smallest) smallest = &tiers[i];
        if (tiers[i].rank <= rank) allowed[count++] = &tiers[i];
    }
    if (!smallest) {
        hs_reject(decision, HOMEOSTAT_POLICY_TYPES_REFUSAL_OVERLOADED, "no tier is ready");
        decision->val.reject.retry_after_ms.is_some = true;
        decision->val.reject.retry_after_ms.val = RETRY_MS;
        return true;
    }
    if (!count) allowed[count++] = smallest;
    size_t first = classification->p_simple >= 0.5f    ? 0
                   : classification->p_complex >= 0.5f ? count - 1
                                                       : count / 2;
    hs_plan(decision, reason);
    for (size_t i = first; i < count && decision->val.plan.steps.len < 8; i++)
        hs_try(decision, allowed[i]);
    return true;
}

HS_ROUTER(route)
